"""The store over gs://, on a fake-gcs-server (a Go program that keeps objects in memory)."""

import os
import threading
import time

import pytest
from store_helpers import FILES, put

from nanocode_core.errors import CorruptArtifact, LeaseLost, StorageError
from nanocode_core.store import Files, Store
from nanocode_core.store.garbage import sweep
from nanocode_core.store.leases import acquire


@pytest.fixture
def root(gcs, request):
    return f"gs://bucket/{request.node.name}"


@pytest.fixture
def store(root, tmp_path):
    return Store(root, cache=tmp_path / "cache")


def race(count, act):
    """What `act(number)` returned in `count` threads that begin together."""
    barrier, results = threading.Barrier(count), [None] * count

    def run(number):
        barrier.wait()
        results[number] = act(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_the_server_honours_preconditions(root):
    # All else rests on this: some emulators let everybody win.
    files = Files(root)
    for number in range(5):
        wins = race(8, lambda who, number=number: files.create(f"c{number}", b"%d" % who))
        assert wins.count(True) == 1
        assert files.read(f"c{number}") == b"%d" % wins.index(True)
        _, version = files.read_versioned(f"c{number}")
        swaps = race(8, lambda who, n=number, v=version: files.compare_and_swap(f"c{n}", v, b"swapped by %d" % who))
        assert sum(swap is not None for swap in swaps) == 1
        assert files.compare_and_swap(f"c{number}", None, b"x") is None
        assert not files.compare_and_delete(f"c{number}", version)


def test_files(root, tmp_path):
    files = Files(root)
    assert files.list() == []
    assert not files.exists("a/b")
    files.write("a/b", b"one")
    files.write("a/b", b"two")
    files.write("a b/ü#?%.txt", b"odd")
    assert files.list() == ["a b/ü#?%.txt", "a/b"]
    assert files.read("a b/ü#?%.txt") == b"odd"
    assert files.read_versioned("a/b")[0] == b"two"
    source = tmp_path / "source"
    source.write_bytes(os.urandom(6_000_000))  # above gcsfs's limit for a single request
    files.upload(source, "big")
    files.download("big", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == source.read_bytes()
    for act in (
        lambda: files.read("x"),
        lambda: files.download("x", tmp_path / "x"),
        lambda: files.read_versioned("x"),
    ):
        with pytest.raises(FileNotFoundError):
            act()
    assert not (tmp_path / "x").exists()
    files.delete("a/b")
    files.delete("a/b")
    assert not files.exists("a/b")


def test_one_client_sees_at_once_what_another_wrote(root):
    one, two = Files(root), Files(root)
    assert not two.exists("x")
    assert two.list() == []
    one.write("x", b"1")
    assert two.exists("x")
    assert two.list() == ["x"]
    one.delete("x")
    assert not two.exists("x")


def test_a_lost_response_is_no_conflict(root):
    files = Files(root)
    assert files.create("lease", b"nonce 1")
    assert files.create("lease", b"nonce 1")  # as the client's own retry would find it
    assert not files.create("lease", b"nonce 2")
    version = files.read_versioned("lease")[1]
    renewed = files.compare_and_swap("lease", version, b"nonce 1, beat 1")
    assert files.compare_and_swap("lease", version, b"nonce 1, beat 1") == renewed


def test_a_missing_bucket_is_an_error_not_an_empty_store(gcs, tmp_path):
    files = Files("gs://no-such-bucket/store")
    for act in (
        lambda: files.read("x"),
        lambda: files.exists("x"),
        files.list,
        lambda: files.write("x", b""),
        lambda: files.create("x", b""),
        lambda: files.read_versioned("x"),
        lambda: files.compare_and_swap("x", None, b""),
        lambda: files.download("x", tmp_path / "x"),
    ):
        with pytest.raises(StorageError, match=r"bucket .*does not exist; create it, or choose another"):
            act()


def test_publish_open_verify_remove(store, tmp_path):
    corpus = put(store)
    tokens = put(store, "tokens", "cd34", {"t": b""}, inputs={"corpus": corpus}, finished=2.0)
    assert store.records() == [corpus, tokens]
    assert put(store, metrics={"late": 1}) == corpus
    artifact = store.open("corpus", "ab12")
    assert {name: (artifact.path / name).read_bytes() for name in FILES} == FILES
    assert store.verify(corpus) == []
    store.files.write(f"artifacts/corpus/ab12/{corpus.folder}/corpus.json", b"[]\n")
    assert store.verify(corpus) == ["corpus.json is damaged (sha256 differs)"]
    with pytest.raises(CorruptArtifact, match=r"corpus.json is damaged"):
        Store(store.root, cache=tmp_path / "fresh").open("corpus", "ab12")
    store.remove("corpus", "ab12")
    assert store.records() == [tokens]
    store.files.write("artifacts/sft/ef56/0123/half", b"half")
    assert store.record("sft", "ef56") is None
    assert sweep(store).leftovers == ("artifacts/sft/ef56",)
    assert store.verify(put(store)) == []


def test_of_publishers_at_once_one_wins_and_is_whole(root, tmp_path):
    def publish(who):
        out = tmp_path / f"out{who}"
        (out / "logs").mkdir(parents=True)
        (out / "logs" / "who").write_text(str(who))
        (out / "model").write_bytes(b"same")
        values = {"config": {}, "inputs": {}, "metrics": {"who": who}, "provenance": {}}
        return Store(root, cache=tmp_path).publish(stage="sft", version=1, fingerprint="k", out=out, **values)

    records = race(4, publish)
    store = Store(root, cache=tmp_path)
    assert records == [store.record("sft", "k")] * 4
    assert store.verify(records[0]) == []
    assert len(store.files.list("artifacts")) == 3  # the losers took theirs away


def test_leases(store):
    lost, waited, got = [], [], threading.Event()

    def rival():
        with store.lease("sft", "ab12", 1.0, waiting=waited.append):
            got.set()

    with store.lease("sft", "ab12", 1.0, lost=lost.append) as lease:
        thread = threading.Thread(target=rival)
        thread.start()
        assert not got.wait(2.5)
        lease.check()
    assert got.wait(5)
    thread.join()
    assert (len(waited), lost) == (1, [])
    assert store.files.list("work") == []


def test_a_lease_taken_by_another_is_lost(root):
    files = Files(root)
    told = threading.Event()
    with acquire(files, "lease.json", 1.0, lost=lambda reason: told.set()) as lease:
        files.write("lease.json", b"somebody else")
        assert told.wait(5)
        with pytest.raises(LeaseLost):
            lease.check()
    assert files.read("lease.json") == b"somebody else"


def test_one_taker_at_a_time(root):
    inside = threading.Lock()

    def take(who):
        with acquire(Files(root), "lease.json", 1.0):
            assert inside.acquire(blocking=False)
            time.sleep(0.02)
            inside.release()
        return who

    assert race(8, take) == list(range(8))
