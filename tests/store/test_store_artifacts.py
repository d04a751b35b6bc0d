import json
import math
import os
import shutil
import threading

import numpy as np
import pytest
from store_helpers import FILES, put, python

from nanocode_core.errors import CorruptArtifact, StorageError, UserError
from nanocode_core.store import Store


def test_an_artifact_is_what_was_published(store):
    corpus = put(store, "corpus", "aa11", metrics={"documents": 3})
    tokens = put(store, "tokens", "bb22", {"tokens.json": b"[]"}, inputs={"corpus": corpus}, finished=2.0)
    assert store.record("corpus", "aa11") == corpus
    assert tokens.inputs["corpus"].digest == corpus.digest
    assert set(corpus.files) == set(FILES)
    assert corpus.files["train/shard.bin"].size == 3000
    artifact = store.open("corpus", "aa11")
    assert artifact.record == corpus
    for name, data in FILES.items():
        assert (artifact.path / name).read_bytes() == data
    assert store.verify(corpus) == []
    assert store.records() == [corpus, tokens]
    assert store.records("tokens") == [tokens]
    assert store.newest("tokens") == tokens
    assert store.newest("dpo") is None
    assert store.record("corpus", "ffff") is None
    store.remove("corpus", "aa11")
    store.remove("corpus", "aa11")
    assert store.record("corpus", "aa11") is None
    assert store.records() == [tokens]
    assert not store.files.list("artifacts/corpus")


def test_the_newest_is_the_one_finished_last(store):
    for key, finished in (("cc", 3.0), ("aa", 2.0), ("bb", 9.0), ("dd", 1.0)):
        put(store, "dpo", key, finished=finished)
    assert [record.fingerprint for record in store.records("dpo")] == ["dd", "aa", "cc", "bb"]
    assert store.newest("dpo").fingerprint == "bb"


def test_digests_agree_where_only_logs_and_clocks_differ(store):
    one = put(store, "corpus", "aa")
    two = put(store, "corpus", "bb", {**FILES, "logs/metrics.jsonl": b"later"}, finished=99.0)
    three = put(store, "corpus", "cc", {**FILES, "corpus.json": b"[]"})
    assert one.digest == two.digest != three.digest


def test_metrics_become_json(store):
    record = put(store, metrics={"a": np.float32(0.5), "b": np.int64(3), "c": math.nan, "d": (1, 2)})
    assert record.metrics == {"a": 0.5, "b": 3, "c": None, "d": [1, 2]}
    assert store.record("corpus", "ab12") == record
    with pytest.raises(TypeError, match="has no JSON form"):
        put(store, key="cd34", metrics={"a": object()})
    assert store.record("corpus", "cd34") is None


def test_a_symbolic_link_is_refused(local):
    out = local.work_dir("corpus", "ab12") / "out"
    out.mkdir()
    (out / "link").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match="symbolic link"):
        put(local)
    assert local.records() == []


def test_an_artifact_that_is_there_is_kept(store):
    first = put(store, metrics={"who": 1})
    assert put(store, files={"other": b""}, metrics={"who": 2}) == first
    assert store.verify(first) == []


def test_of_two_that_publish_at_once_one_wins_and_is_whole(root, tmp_path):
    for number in range(10):
        records = []

        def work(who, number=number, records=records):
            store = Store(root, cache=tmp_path / f"cache{who}")
            out = tmp_path / f"out{who}"
            out.mkdir()
            (out / "logs").mkdir()
            (out / "logs" / "who").write_text(str(who))
            (out / "model").write_bytes(b"same")
            values = {"config": {}, "inputs": {}, "metrics": {"who": who}, "provenance": {}}
            record = store.publish(stage="sft", version=1, fingerprint=f"k{number}", out=out, **values)
            records.append(record)
            shutil.rmtree(out, ignore_errors=True)

        threads = [threading.Thread(target=work, args=(who,)) for who in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        store = Store(root, cache=tmp_path / "reader")
        assert records == [store.record("sft", f"k{number}")] * 2
        assert store.verify(records[0]) == []


PUBLISH = """
import os, shutil, signal, sys
from pathlib import Path
from nanocode_core.store import Store
store = Store(sys.argv[1])
moment = sys.argv[2]
rename = os.rename

def killed_before(source, target):
    if "artifacts" in str(target):
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)

def killed_after(source, target):
    rename(source, target)
    if "artifacts" in str(target):
        os.kill(os.getpid(), signal.SIGKILL)

if moment != "any":
    os.rename = {"before": killed_before, "after": killed_after}[moment]
print("ready", flush=True)
for number in range(10_000):
    out = store.work_dir("sft", f"k{number}") / "out"
    out.mkdir(exist_ok=True)
    for name in range(3):
        (out / f"file{name}").write_bytes(b"%d" % number * 1000)
    store.publish(stage="sft", version=1, fingerprint=f"k{number}", config={}, inputs={}, out=out, metrics={},
                  provenance={})
"""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_publishing_killed_at_its_commit_leaves_all_or_nothing(local, moment):
    with python(PUBLISH, local.root, moment) as process:
        assert process.first == "ready\n"
        assert process.wait(20) == -9
    record = local.record("sft", "k0")
    assert (record is None) == (moment == "before")
    rebuilt = put(local, "sft", "k0", {f"file{name}": b"0" * 1000 for name in range(3)})
    assert local.verify(rebuilt) == []
    assert rebuilt.digest == local.open("sft", "k0").record.digest


def test_publishings_killed_at_random_leave_whole_artifacts_only(local):
    for pause in (0.02, 0.1, 0.2, 0.35):
        with python(PUBLISH, local.root, "any") as process:
            assert process.first == "ready\n"
            threading.Event().wait(pause)
        for record in local.records():
            assert local.verify(record) == []
    assert len(local.records()) > 3


def test_files_without_a_record_are_no_artifact_and_in_nobodys_way(local):
    stale = local.files.directory / "artifacts" / "corpus" / "ab12"
    (stale / "train").mkdir(parents=True)
    (stale / "train" / "shard.bin").write_bytes(b"half")
    (stale / "leftover").write_bytes(b"")
    assert local.record("corpus", "ab12") is None
    assert local.records() == []
    record = put(local)
    assert local.verify(record) == []
    assert not (stale / "leftover").exists()


def test_an_upload_killed_before_the_record_is_no_artifact(tmp_path):
    store = Store("memory://killed/upload", cache=tmp_path)
    store.files.write("artifacts/corpus/ab12/0123/train/shard.bin", b"half")
    assert store.record("corpus", "ab12") is None
    assert store.records() == []
    assert store.verify(put(store)) == []


def spoil(store, name, data):
    """Put other bytes in place of a file of artifact corpus/ab12 (None: remove it)."""
    record = store.record("corpus", "ab12")
    path = "/".join(filter(None, ["artifacts/corpus/ab12", record.folder, name]))
    if data is None:
        store.files.delete(path)
    else:
        store.files.write(path, data)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (None, "train/shard.bin is missing"),
        (b"abc", "train/shard.bin is damaged (3 bytes instead of 3000)"),
        (b"abd" * 1000, "train/shard.bin is damaged (sha256 differs)"),
    ],
)
def test_a_damaged_file_is_named_with_the_command_that_repairs(store, data, problem):
    record = put(store)
    spoil(store, "train/shard.bin", data)
    with pytest.raises(CorruptArtifact) as caught:
        store.open("corpus", "ab12")
    assert str(caught.value) == (
        f"artifact corpus/ab12: {problem}; run `nanocode artifacts rm corpus/ab12` and run again: "
        "only this stage is rebuilt"
    )
    assert store.verify(record) == [problem]
    store.remove("corpus", "ab12")
    assert store.verify(put(store)) == []
    assert store.open("corpus", "ab12").record == store.record("corpus", "ab12")


def test_damaged_logs_count_as_well_and_all_problems_are_listed(store):
    record = put(store)
    spoil(store, "logs/metrics.jsonl", b"x")
    spoil(store, "corpus.json", None)
    assert store.verify(record) == [
        "corpus.json is missing",
        "logs/metrics.jsonl is damaged (1 bytes instead of 12)",
    ]
    with pytest.raises(CorruptArtifact, match=r"corpus.json is missing \(and 1 more\)"):
        store.open("corpus", "ab12")


def test_files_the_record_does_not_name_are_ignored(local):
    put(local)
    local.files.write("artifacts/corpus/ab12/.DS_Store", b"x")
    local.files.write("artifacts/.DS_Store", b"x")
    local.files.write("artifacts/not a stage/x/artifact.json", b"x")
    assert [record.key for record in local.records()] == [("corpus", "ab12")]
    assert local.open("corpus", "ab12").path.is_dir()


def test_an_artifact_is_verified_once_per_store(local):
    put(local)
    assert local.open("corpus", "ab12") is local.open("corpus", "ab12")
    spoil(local, "corpus.json", b"damage")
    local.open("corpus", "ab12")
    with pytest.raises(CorruptArtifact):
        Store(local.root).open("corpus", "ab12")


def test_an_unknown_artifact_is_a_users_error(store):
    with pytest.raises(UserError, match="no artifact corpus/ffff in"):
        store.open("corpus", "ffff")
    with pytest.raises(UserError, match="is no name of a stage"):
        store.record("corpus", "../../x")


def test_records_of_newer_versions_and_broken_ones_stop_a_listing_but_not_their_removal(store):
    good = put(store, key="aa11")
    put(store, key="bb22")
    value = json.loads(store.files.read("artifacts/corpus/bb22/artifact.json"))
    store.files.write("artifacts/corpus/bb22/artifact.json", json.dumps({**value, "format": 2}).encode())
    for act in (lambda: store.record("corpus", "bb22"), store.records, lambda: store.open("corpus", "bb22")):
        with pytest.raises(UserError, match="written by a newer nanocode"):
            act()
    store.files.write("artifacts/corpus/bb22/artifact.json", b"{")
    with pytest.raises(CorruptArtifact, match=r"artifact.json is not a valid record"):
        store.records()
    assert isinstance(store.scan()["corpus", "bb22"], CorruptArtifact)
    store.remove("corpus", "bb22")
    assert store.records() == [good]


def test_a_remote_artifact_comes_from_the_cache_while_that_is_sound(tmp_path):
    store = Store("memory://cached/store", cache=tmp_path / "cache")
    put(store)
    path = store.open("corpus", "ab12").path
    assert path.is_relative_to(tmp_path / "cache")
    (path / "corpus.json").write_bytes(b"xx\n")
    (path / "train" / "shard.bin").unlink()
    again = Store(store.root, cache=tmp_path / "cache").open("corpus", "ab12")
    assert again.path == path
    assert {name: (path / name).read_bytes() for name in FILES} == FILES
    for name in FILES:
        spoil(store, name, None)
    assert Store(store.root, cache=tmp_path / "cache").open("corpus", "ab12").path == path
    assert len(Store(store.root).verify(again.record)) == 3


def test_work_directories_are_local_and_told_apart(tmp_path):
    one = Store("memory://one", cache=tmp_path).work_dir("sft", "ab12")
    two = Store("memory://two", cache=tmp_path).work_dir("sft", "ab12")
    assert one.is_dir()
    assert one != two
    assert Store(str(tmp_path / "s")).work_dir("sft", "ab12") == tmp_path / "s" / "work" / "sft" / "ab12"


def test_looking_at_a_store_makes_nothing(tmp_path):
    store = Store(str(tmp_path / "store"), cache=tmp_path / "cache")
    assert store.records() == []
    assert store.record("corpus", "ab12") is None
    store.remove("corpus", "ab12")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_while_publishing_leaves_no_artifact_and_then_works(small_disk):
    store = Store(str(small_disk / "store"))
    out = store.work_dir("corpus", "ab12") / "out"
    out.mkdir()
    (out / "data").write_bytes(bytes(400_000))
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        room = os.statvfs(small_disk)
        file.write(bytes(room.f_bavail * room.f_frsize))
    publish = {"stage": "corpus", "version": 1, "fingerprint": "ab12", "config": {}, "inputs": {}, "out": out}
    with pytest.raises(StorageError, match="the disk is full"):
        store.publish(**publish, metrics={}, provenance={})
    assert store.records() == []
    ballast.unlink()
    record = store.publish(**publish, metrics={}, provenance={})
    assert list(record.files) == ["data"]
    assert store.verify(record) == []


def test_an_unwritable_store_is_named_at_the_first_touch(tmp_path):
    (tmp_path / "file").write_text("")
    store = Store(str(tmp_path / "file" / "store"))
    for act in (
        lambda: store.work_dir("corpus", "ab12"),
        lambda: store.lease("corpus", "ab12", 60.0),
        lambda: store.record("corpus", "ab12"),
        store.records,
    ):
        with pytest.raises(StorageError, match=r"choose another with --set run.store="):
            act()


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    put(Store("memory://c/s", cache=tmp_path / "cache"))
    with pytest.raises(StorageError, match=r"the cache is not .*/file/.*choose another with --set run.cache="):
        Store("memory://c/s", cache=tmp_path / "file" / "cache").open("corpus", "ab12")
