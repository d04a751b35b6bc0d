"""The store over gs:// while requests fail: what comes out is right, or one line says what is wrong."""

import os

import pytest
from faults import Faults
from store_helpers import FILES, put

from nanocode_core.errors import CorruptArtifact, StorageError
from nanocode_core.store import Files, Store
from nanocode_core.store.mirror import Mirror

KINDS = ["unavailable", "reset", "lost", "cut", "short"]


@pytest.fixture
def root(faulty, tmp_path):
    return f"gs://bucket/{tmp_path.parent.name}-{tmp_path.name}"


@pytest.mark.parametrize("kind", KINDS)
def test_every_operation_survives(faulty, root, tmp_path, kind):
    files, source, target = Files(root), tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(6_000_000))  # more than one request to gcsfs
    faulty.faults = Faults(**{kind: 0.25}, in_a_row=1)
    files.write("a", b"x" * 1000)
    assert files.read("a") == b"x" * 1000
    assert files.create("b", b"nonce 1")
    assert not files.create("b", b"nonce 2")
    content, version = files.read_versioned("b")
    assert content == b"nonce 1"
    second = files.compare_and_swap("b", version, b"nonce 1, beat 1")
    assert second is not None
    assert files.compare_and_swap("b", version, b"nonce 2") is None
    assert files.compare_and_swap("c", None, b"nonce 3") is not None
    files.upload(source, "big/one")
    files.download("big/one", target)
    assert target.read_bytes() == source.read_bytes()
    assert files.list() == ["a", "b", "big/one", "c"]
    assert files.inventory("big")["one"].size == 6_000_000
    assert files.exists("a")
    files.delete("a")
    assert not files.exists("a")
    files.compare_and_delete("b", second)
    files.clear("big")
    assert files.list() == ["c"]


def test_a_download_that_was_cut_is_never_taken_for_whole(faulty, root, tmp_path):
    """With a Content-Length that fits what came no client can tell: the server's checksum does."""
    files = Files(root)
    files.write("a", b"0123456789" * 100)
    faulty.faults = Faults(short=1.0, in_a_row=3)
    assert files.read("a") == b"0123456789" * 100
    faulty.faults.in_a_row = 100
    for act in (lambda: files.read("a"), lambda: files.download("a", tmp_path / "a")):
        with pytest.raises(StorageError, match=r"a arrived damaged 5 times in a row|could not read a"):
            act()
    assert os.listdir(tmp_path) == []


def test_artifacts_and_saved_work_come_through_all_faults_at_once(faulty, root, tmp_path):
    faulty.faults = Faults(unavailable=0.06, reset=0.06, lost=0.06, cut=0.1, short=0.15, stall=0.02, stall_seconds=2)
    store = Store(root, cache=tmp_path / "cache")
    records = [put(store, key=f"ab{number}") for number in range(4)]
    elsewhere = Store(root, cache=tmp_path / "elsewhere")
    for record in records:
        artifact = elsewhere.open(*record.key)
        assert {name: (artifact.path / name).read_bytes() for name in FILES} == FILES
        assert elsewhere.verify(record) == []
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    mirror = Mirror(store.files, "work/sft/ab", here)
    for number in range(5):
        with (here / "log").open("ab") as log:
            log.write(b"%d" % number * 10_000)
        mirror.save()
    assert Mirror(Files(root), "work/sft/ab", there).restore()
    assert (there / "log").read_bytes() == (here / "log").read_bytes()
    assert sum(faulty.met[kind] for kind in KINDS) > 3


@pytest.mark.parametrize("status", [404, 410])
def test_a_shard_that_is_gone_is_named_with_the_remedy(faulty, root, tmp_path, status):
    store = Store(root, cache=tmp_path / "cache")
    record = put(store)
    faulty.refuse("GET .*/train/shard.bin", status, "No such object")
    remedy = "train/shard.bin is missing; run `nanocode artifacts rm corpus/ab12` and run again"
    with pytest.raises(CorruptArtifact, match=remedy) as caught:
        store.open("corpus", "ab12")
    assert "\n" not in str(caught.value)
    assert store.verify(record) == ["train/shard.bin is missing"]


def test_a_shard_that_was_deleted_or_changed_is_named(faulty, root, tmp_path):
    record = put(Store(root, cache=tmp_path))
    shard = f"artifacts/corpus/ab12/{record.folder}/train/shard.bin"
    for number, (change, said) in enumerate(
        (
            (lambda files: files.write(shard, b"xyz" * 1000), r"train/shard.bin is damaged \(sha256 differs\)"),
            (lambda files: files.write(shard, b"abc"), r"train/shard.bin is damaged \(3 bytes instead of 3000\)"),
            (lambda files: files.delete(shard), "train/shard.bin is missing"),
        )
    ):
        store = Store(root, cache=tmp_path / str(number))
        change(store.files)
        with pytest.raises(CorruptArtifact, match=rf"^artifact corpus/ab12: {said}; run `nanocode artifacts rm"):
            store.open("corpus", "ab12")


def test_a_shard_that_may_not_be_read_is_no_missing_one(faulty, root, tmp_path):
    put(Store(root, cache=tmp_path))
    faulty.refuse("GET .*/train/shard.bin")
    with pytest.raises(StorageError, match=r"no permission to read object .*/train/shard.bin in bucket bucket"):
        Store(root, cache=tmp_path / "other").open("corpus", "ab12")
