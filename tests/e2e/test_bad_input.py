"""Every kind of bad input: one line on stderr, exit code 2, nothing in the store."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SMALL = ("--preset", "smoke", "--stages", "corpus", "--set", "corpus.characters=200000")


def nanocode(tmp_path, *args, store=None, **env):
    variables = {
        **os.environ,
        "NANOCODE_STORE": str(store or tmp_path / "store"),
        "NANOCODE_CACHE": str(tmp_path / "cache"),
        "PREFECT_HOME": str(tmp_path / "prefect"),
        **env,
    }
    return subprocess.run(
        [sys.executable, "-m", "cli.main", *args], env=variables, capture_output=True, text=True, timeout=250
    )


def refused(done, *said):
    assert done.returncode == 2, done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    for word in said:
        assert word in lines[0]


def artifacts(store):
    return [path for path in Path(store).rglob("*") if path.is_file() and path.name != ".lock"]


def source(kind, **fields):
    value = json.dumps([{"kind": kind, "name": "mine", "content": "prose", **fields}])
    return ("--set", "corpus.code_share=0", "--set", f"corpus.sources={value}")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--preset", "dmeo"), ("unknown preset 'dmeo'", "'demo'")),
        (("--set", "training.stepz=1"), ("unknown field 'training.stepz'", "'training.steps'")),
        (("--set", "training.steps=soon"), ("training.steps", "integer")),
        (("--stages", "pretrian"), ("unknown stage 'pretrian'",)),
        (("--set", "soul=no/such/SOUL.md"), ("soul", "no/such/SOUL.md")),
        (source("files", paths=["no/such/*.parquet"]), ("corpus.sources", "no/such/*.parquet")),
        (("--set", "tokenizer.path=no/such/tokenizer.json"), ("tokenizer.path", "no/such/tokenizer.json")),
        (("--stages", "sft"), ("stage sft needs", "run all stages")),
    ],
    ids=["preset", "field", "type", "stage", "soul", "corpus", "tokenizer", "inputs"],
)
def test_refused_before_anything_starts(tmp_path, args, said):
    refused(nanocode(tmp_path, "speedrun", *args), *said)
    assert not (tmp_path / "store").exists()


def test_empty_soul(tmp_path):
    empty = tmp_path / "SOUL.md"
    empty.touch()
    refused(nanocode(tmp_path, "speedrun", "--set", f"soul={empty}"), str(empty), "empty")


def test_store_below_a_file_is_not_writable(tmp_path):
    (tmp_path / "file").touch()
    refused(nanocode(tmp_path, "speedrun", *SMALL, store=tmp_path / "file" / "store"), "store", "choose another")


@pytest.mark.slow  # the hub is tried again for half a minute; tests/corpus has the shorter ways to fail
def test_unreachable_hub(tmp_path):
    hub = source("hub", repo="some/where")
    done = nanocode(tmp_path, "speedrun", *SMALL, *hub, HF_ENDPOINT="http://127.0.0.1:9")
    refused(done, "'mine'", "http://127.0.0.1:9", "HF_ENDPOINT")
    assert artifacts(tmp_path / "store") == []


@pytest.mark.parametrize(
    ("size", "args", "stage"),
    [
        pytest.param("100k", SMALL, "corpus", id="corpus", marks=pytest.mark.slow),
        # Room for the data but not for a checkpoint: tensorstore tells a full disk in words only.
        pytest.param(
            "3m", ("--preset", "smoke", "--stages", "corpus,tokenizer,tokens,pretrain"), "pretrain", id="checkpoint"
        ),
    ],
)
def test_full_disk_and_then_room(tmp_path, size, args, stage):
    disk = tmp_path / "disk"
    disk.mkdir()
    tmpfs = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    if subprocess.run(tmpfs, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        refused(nanocode(tmp_path, "speedrun", *args, store=disk / "store"), "disk is full")
        assert not list((disk / "store").glob(f"artifacts/{stage}/*"))
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        done = nanocode(tmp_path, "speedrun", *args, store=disk / "store")
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.slow  # tests/store has these cases for a store by itself
def test_damaged_file_and_newer_record(tmp_path):
    done = nanocode(tmp_path, "speedrun", *SMALL)
    assert done.returncode == 0, done.stderr
    (record,) = (tmp_path / "store").glob("artifacts/corpus/*/artifact.json")
    repair = f"nanocode artifacts rm corpus/{record.parent.name}"

    shard = record.parent / "train" / "shard_00000.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused(nanocode(tmp_path, "speedrun", *SMALL), "train/shard_00000.parquet", repair)

    shard.write_bytes(whole)
    value = json.loads(record.read_text())
    record.write_text(json.dumps({**value, "format": value["format"] + 1}))
    refused(nanocode(tmp_path, "speedrun", *SMALL), "newer", repair)

    name, reference = repair.split()[0], repair.split()[-1]
    assert name == "nanocode"
    assert nanocode(tmp_path, "artifacts", "rm", reference, "--yes").returncode == 0
    again = nanocode(tmp_path, "speedrun", *SMALL)
    assert json.loads(again.stdout.splitlines()[-1])["stages"]["corpus"]["state"] == "built"
