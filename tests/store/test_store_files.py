import multiprocessing
import random
import shutil
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_helpers import python

from nanocode_core.errors import StorageError, UserError
from nanocode_core.store import Files
from nanocode_core.store.files import is_relative
from nanocode_core.store.local import is_partial

fork = multiprocessing.get_context("forkserver")


def test_what_is_written_is_read_listed_and_deleted(root, tmp_path):
    files = Files(root)
    assert files.list() == []
    files.write("a/b.txt", b"one")
    files.write("a/c/d.bin", b"")
    files.write("a/b.txt", b"two")
    assert files.read("a/b.txt") == b"two"
    assert files.list("a") == files.list() == ["a/b.txt", "a/c/d.bin"]
    assert files.list("a/c") == ["a/c/d.bin"]
    assert files.list("a/b") == []
    assert files.exists("a/b.txt")
    assert not files.exists("a/x")
    files.delete("a/b.txt")
    files.delete("a/b.txt")
    assert files.list() == ["a/c/d.bin"]
    with pytest.raises(FileNotFoundError):
        files.read("a/b.txt")
    with pytest.raises(FileNotFoundError):
        files.read_versioned("a/b.txt")


def test_upload_and_download(root, tmp_path):
    files = Files(root)
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * 100)
    files.upload(source, "x/y")
    target = tmp_path / "new" / "target"
    files.download("x/y", target)
    assert target.read_bytes() == source.read_bytes()
    with pytest.raises(FileNotFoundError):
        files.download("x/z", target)
    assert [p.name for p in target.parent.iterdir()] == ["target"]
    assert target.read_bytes() == source.read_bytes()


def test_create_only_puts_what_is_not_there(root):
    files = Files(root)
    assert files.create("lock", b"mine")
    assert not files.create("lock", b"yours")
    assert files.read("lock") == b"mine"


def test_compare_and_swap_and_delete(root):
    files = Files(root)
    assert files.compare_and_swap("x", "no-such-version", b"0") is None
    first = files.compare_and_swap("x", None, b"1")
    assert files.read_versioned("x") == (b"1", first)
    assert files.compare_and_swap("x", None, b"2") is None
    second = files.compare_and_swap("x", first, b"2")
    assert files.compare_and_swap("x", first, b"3") is None
    assert files.read_versioned("x") == (b"2", second)
    assert not files.compare_and_delete("x", first)
    assert files.compare_and_delete("x", second)
    assert not files.compare_and_delete("x", second)
    assert not files.exists("x")


@pytest.mark.parametrize("path", ["../x", "/x", "a/../../x", "", "a//b", "a/.", "a\\..\\x", "a\0"])
def test_no_path_leads_out_of_the_root(root, path):
    with pytest.raises(ValueError, match="not a relative path"):
        Files(root).write(path, b"")


@given(st.text())
def test_relative_paths_stay_inside(path):
    if is_relative(path):
        assert not path.startswith("/")
        assert ".." not in path.split("/")


def test_kinds_of_roots(tmp_path):
    assert Files(f"file://{tmp_path}/x").root == str(tmp_path / "x") == Files(f"{tmp_path}/y/../x/").root
    assert Files(f"{tmp_path}/x").directory == tmp_path / "x"
    assert Files("memory://a/").root == "memory://a"
    with pytest.raises(UserError, match="unknown kind of storage"):
        Files("nowhere://x")


WRITER = """
import sys
from nanocode_core.store import Files
files = Files(sys.argv[1])
print("ready", flush=True)
number = 0
while True:
    number += 1
    files.write("value", b"%d\\n" % (number % 10) * 200_000)
"""


def test_killing_a_writer_never_shows_half_a_file(tmp_path):
    files = Files(str(tmp_path))
    chance = random.Random(0)
    for _ in range(6):
        with python(WRITER, tmp_path):
            until = time.monotonic() + chance.uniform(0.05, 0.3)
            while time.monotonic() < until:
                if files.exists("value"):
                    assert_whole(files.read("value"))
        assert_whole(files.read("value"))
        assert files.list() == ["value"]
    files.write("value", b"after")
    assert files.read("value") == b"after"


def assert_whole(data):
    assert len(data) == 400_000
    assert data == data[:2] * 200_000


def _race(root, barrier, rounds, queue):
    files = Files(root)
    wins = []
    for number in range(rounds):
        barrier.wait()
        if files.create(f"round/{number}", f"{multiprocessing.current_process().pid}".encode()):
            wins.append(number)
    queue.put(wins)


def test_of_eight_creators_one_wins(tmp_path):
    rounds, racers = 20, 8
    barrier, queue = fork.Barrier(racers), fork.Queue()
    processes = [fork.Process(target=_race, args=(str(tmp_path), barrier, rounds, queue)) for _ in range(racers)]
    for process in processes:
        process.start()
    wins = sorted(number for _ in processes for number in queue.get(timeout=30))
    for process in processes:
        process.join()
    assert wins == list(range(rounds))


def _count(root, times):
    files = Files(root)
    for _ in range(times):
        while True:
            data, version = files.read_versioned("count")
            # A unique content each time, as the contract of compare_and_swap asks for.
            if files.compare_and_swap("count", version, b"%d" % (int(data) + 1)):
                break


def test_no_swap_is_lost(tmp_path):
    Files(str(tmp_path)).write("count", b"0")
    processes = [fork.Process(target=_count, args=(str(tmp_path), 25)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert Files(str(tmp_path)).read("count") == b"100"


def test_a_store_below_a_file_is_an_error_not_an_empty_store(tmp_path):
    (tmp_path / "file").write_text("x")
    files = Files(str(tmp_path / "file" / "store"))
    for act in (
        lambda: files.write("x", b""),
        lambda: files.create("x", b""),
        lambda: files.compare_and_swap("x", None, b""),
    ):
        with pytest.raises(StorageError, match=r"store .*/file/store is not writable: .*--set run.store=") as caught:
            act()
        assert "\n" not in str(caught.value)
    for act in (lambda: files.read("x"), lambda: files.exists("x"), lambda: files.list("x")):
        with pytest.raises(StorageError, match=r"store .*/file/store is not readable: not a directory"):
            act()


def test_a_read_only_store_can_be_read(tmp_path, read_only):
    files = Files(str(tmp_path / "store"))
    files.write("a", b"1")
    read_only(tmp_path / "store")
    assert files.read("a") == b"1"
    assert files.list() == ["a"]
    for act in (lambda: files.write("b", b""), lambda: files.create("b", b""), lambda: files.delete("a")):
        with pytest.raises(StorageError, match="is not writable: read-only file system"):
            act()


def test_a_full_disk_is_named_and_leaves_the_old_file(small_disk):
    files = Files(str(small_disk / "store"))
    files.write("a", b"old")
    (small_disk / "ballast").write_bytes(bytes(600_000))
    for act in (lambda: files.write("a", bytes(600_000)), lambda: files.create("b", bytes(600_000))):
        with pytest.raises(StorageError, match=r"the disk is full .*free some space .*goes on from its last save"):
            act()
    assert files.read("a") == b"old"
    assert files.list() == ["a"]
    assert not any(is_partial(path.name) for path in (small_disk / "store").iterdir())
    (small_disk / "ballast").unlink()
    files.write("a", bytes(600_000))


def test_a_removed_store_can_be_written_again(tmp_path):
    files = Files(str(tmp_path / "store"))
    files.write("a/b", b"1")
    shutil.rmtree(tmp_path / "store")
    assert files.list() == []
    files.write("a/b", b"2")
    assert files.read("a/b") == b"2"
