"""A job whose machine is lost goes on on another one, with a store on gs://: the content comes out the same."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nanocode_core.store import Files

STAGES = "corpus,tokenizer,tokens,pretrain"
SETTINGS = [
    "training.steps=24",
    "training.validate_every=10",
    "checkpoints.steps=2",
    "run.lease_seconds=4",
    "run.mirror_seconds=1",
]


def speedrun(store: str, cache: Path, log: Path) -> "subprocess.Popen[str]":
    """A run on a machine whose local directory is `cache`."""
    command = [sys.executable, "-m", "cli.main", "speedrun", "--preset", "smoke", "--stages", STAGES, "--store", store]
    command += [part for setting in SETTINGS for part in ("--set", setting)]
    environment = {**os.environ, "NANOCODE_CACHE": str(cache), "PREFECT_HOME": str(cache / "prefect")}
    output = log.open("w")
    return subprocess.Popen(
        command, env=environment, stdout=output, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def digests(log: Path) -> dict[str, str]:
    stages = json.loads(log.read_text().splitlines()[-1])["stages"]
    return {name: stage["digest"] for name, stage in stages.items()}


@pytest.mark.slow  # the same on Kubernetes, with machines that are preempted: tests/controlplane
@pytest.mark.timeout(1200)
def test_a_lost_machine_is_replaced_by_another(gcs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = speedrun(f"gs://bucket/{tmp_path.name}/whole", tmp_path / "a", tmp_path / "whole.log")
    assert whole.wait(500) == 0, (tmp_path / "whole.log").read_text()

    store, work = f"gs://bucket/{tmp_path.name}/store", f"gs://bucket/{tmp_path.name}/work"
    bucket = Files(work)
    monkeypatch.setenv("NANOCODE_WORK", work)
    lost = speedrun(store, tmp_path / "b", tmp_path / "lost.log")
    while not any(path.endswith("/checkpoints/6/manifest.json") for path in bucket.list("work/pretrain")):
        assert lost.poll() is None, (tmp_path / "lost.log").read_text()
        time.sleep(0.1)
    os.killpg(lost.pid, signal.SIGKILL)
    lost.wait()

    other = speedrun(store, tmp_path / "c", tmp_path / "other.log")
    assert other.wait(500) == 0, (tmp_path / "other.log").read_text()
    said = (tmp_path / "other.log").read_text()
    assert f"pretrain: work in progress fetched from {store}" in said
    assert "pretrain: going on from the checkpoint after step" in said
    assert digests(tmp_path / "other.log") == digests(tmp_path / "whole.log")
    assert not bucket.list(), "nothing of the work is left"
    assert not Files(store).list("work")
