"""The local cache of a remote store's artifacts: what goes to make room, and what never does."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_helpers import put, python

from nanocode_core.errors import StorageError
from nanocode_core.store import Store, cache
from nanocode_core.store.cache import Cache
from nanocode_core.store.local import replacing

fork = multiprocessing.get_context("forkserver")
SIZE = 3000 + 3 + 12  # of what `put` publishes


@pytest.fixture(autouse=True)
def forget():
    """What a test has used is in use to the end of its process: here to the end of the test."""
    yield
    release()


def release():
    for handle in cache._held.values():
        os.close(handle)
    cache._held.clear()


def fill(path: Path, size: int) -> None:
    """As a download does: another process that uses the entry sees all of a file or nothing."""
    with replacing(path / "data") as partial:
        partial.write_bytes(b"x" * size)


@settings(max_examples=60, deadline=None)
@given(
    limit=st.integers(1, 60),
    uses=st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), min_size=1, max_size=14),
    sizes=st.fixed_dictionaries({name: st.integers(0, 40) for name in "abcdef"}),
)
def test_what_was_used_last_stays_and_the_limit_holds(limit, uses, sizes, tmp_path_factory):
    """Each use admits an entry; those marked go on being used. A model of the cache says what has to be there."""
    shelf = Cache(tmp_path_factory.mktemp("cache"), limit)
    order: list[str] = []
    kept: set[str] = set()
    try:
        for name, keep in uses:
            gone, others = [], [other for other in order if other != name]
            for other in [*others]:
                if sum(sizes[o] for o in others) + sizes[name] <= limit:
                    break
                if other not in kept:
                    others.remove(other)
                    gone.append(other)
            fits = name in kept or sum(sizes[o] for o in others) + sizes[name] <= limit
            if not fits:
                with pytest.raises(StorageError, match="has no room for stage/"):
                    shelf.admit("stage", name, sizes[name])
                order = [other for other in order if other not in gone]
            else:
                fill(shelf.admit("stage", name, sizes[name]), sizes[name])
                order = [*others, name] if name not in kept else order
                if keep:
                    kept.add(name)
                else:
                    for path in [path for path in cache._held if path.name not in kept]:
                        os.close(cache._held.pop(path))
            assert [entry.path.name for entry in shelf.entries()] == order
            assert sum(entry.size for entry in shelf.entries()) <= limit
            assert {path.name for path in (shelf.directory / "stage").iterdir() if path.is_dir()} == set(order)
    finally:
        release()


def test_a_store_keeps_to_the_limit_and_fetches_again_what_went(tmp_path):
    root = f"memory://{tmp_path.name}"
    records = [put(Store(root, cache=tmp_path / "work"), key=f"ab{number}") for number in range(3)]

    def opened(record):
        artifact = Store(root, cache=tmp_path / "cache", cache_bytes=2 * records[0].size).open(*record.key)
        assert (artifact.path / "train/shard.bin").read_bytes() == b"abc" * 1000
        release()  # as when the process ends
        return artifact.path

    paths = [opened(record) for record in records]
    assert [path.exists() for path in paths] == [False, True, True]
    opened(records[0])
    assert [path.exists() for path in paths] == [True, False, True]


def test_an_artifact_that_is_larger_than_the_cache_is_refused_in_one_line(tmp_path):
    root = f"memory://{tmp_path.name}"
    record = put(Store(root, cache=tmp_path / "work"))
    small = Store(root, cache=tmp_path / "cache", cache_bytes=record.size - 1)
    with pytest.raises(StorageError, match=r"has no room for corpus/ab12-.*raise run.cache_gib") as caught:
        small.open(*record.key)
    assert "\n" not in str(caught.value)
    assert Cache(tmp_path / "cache" / "artifacts").entries() == []


def test_an_artifact_that_the_disk_has_no_room_for_is_refused_before_its_download(small_disk, tmp_path):
    root = f"memory://{tmp_path.name}"
    record = put(Store(root, cache=tmp_path / "work"), files={"big": b"x" * 3_000_000})
    with pytest.raises(StorageError, match=r"the disk is full: corpus/ab12-.*free some space"):
        Store(root, cache=small_disk, cache_bytes=10**9).open(*record.key)
    assert list((small_disk / "artifacts" / "corpus").iterdir()) == []


USER = """
import sys, time
from pathlib import Path
from nanocode_core.store.cache import Cache
path = Cache(Path(sys.argv[1]), 10).admit("stage", "used", 8)
(path / "data").write_bytes(b"x" * int(sys.argv[2]))
print("used", flush=True)
time.sleep(600)
"""


def test_what_another_process_uses_stays_until_that_ends(tmp_path):
    shelf = Cache(tmp_path, 10)
    with python(USER, tmp_path, 8) as user:
        assert user.first == "used\n"
        with pytest.raises(StorageError, match=r"of which 0\.00 GiB are in use"):
            shelf.admit("stage", "other", 3)
        shelf.admit("stage", "small", 2)
        user.send_signal(signal.SIGKILL)
        user.wait()
    shelf.admit("stage", "other", 3)
    assert [entry.path.name for entry in shelf.entries()] == ["small", "other"]
    assert not (tmp_path / "stage" / "used").exists()


def test_an_entry_that_a_kill_left_half_full_is_completed(tmp_path):
    root = f"memory://{tmp_path.name}"
    record = put(Store(root, cache=tmp_path / "work"))
    place = Cache(tmp_path / "cache" / "artifacts").admit("corpus", f"ab12-{record.digest[:16]}", record.size)
    (place / "train").mkdir()
    (place / "train" / "shard.bin").write_bytes(b"abc")
    (place / "train" / ".0123.tmp").write_bytes(b"ab")
    release()
    artifact = Store(root, cache=tmp_path / "cache").open("corpus", "ab12")
    assert artifact.path == place
    assert (place / "train" / "shard.bin").read_bytes() == b"abc" * 1000


def _use(directory, number, rounds, barrier, queue):
    """Use one entry after another, each for a moment, and look whether it stays while it is used."""
    shelf, sound = Cache(directory, 30), True
    barrier.wait(60)
    for step in range(rounds):
        name = f"e{(number * 7 + step * 3) % 11}"
        try:
            path = shelf.admit("stage", name, 10)
        except StorageError:
            continue  # all the room is in use
        fill(path, 10)
        time.sleep(0.002)
        sound = sound and (path / "data").read_bytes() == b"x" * 10
        with shelf._alone():  # a look at entries that come and go meanwhile would see both of a swap
            sound = sound and sum(entry.size for entry in shelf.entries()) <= 30
        os.close(cache._held.pop(path))
    queue.put(sound)


def test_processes_that_race_for_the_room_lose_nothing_that_they_use(tmp_path):
    count = 4
    barrier, queue = fork.Barrier(count), fork.Queue()
    processes = [fork.Process(target=_use, args=(tmp_path, n, 60, barrier, queue)) for n in range(count)]
    for process in processes:
        process.start()
    assert [queue.get(timeout=120) for _ in processes] == [True] * count
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sum(entry.size for entry in Cache(tmp_path, 30).entries()) <= 30


def test_a_cache_of_an_older_version_is_taken_over(tmp_path):
    old = tmp_path / "stage" / "old"
    old.mkdir(parents=True)
    fill(old, 9)
    Cache(tmp_path, 10).admit("stage", "new", 2)
    assert not old.exists()
