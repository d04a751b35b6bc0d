"""Checkpoints on gs:// while requests fail. A subprocess talks to the server: Orbax reads its settings once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from faults import PRINCIPAL, FaultProxy, Faults
from gcs import faulty  # noqa: F401 (fixture)

SAVE = """
import json, sys
import jax.numpy as jnp
from nanocode_core.config.model import Checkpoints as Config
from nanocode_core.errors import StorageError, UserError
from nanocode_core.training.checkpoints import Checkpoints

def state(value):
    return {"a": jnp.full((300, 40), value), "b": jnp.asarray(int(value))}

log, sound, error = [], [], None
try:
    for start in range(2):
        checkpoints = Checkpoints(sys.argv[1], Config(keep=2), log.append)
        saved = checkpoints.newest()
        first = saved.step if saved else 0
        if saved:
            restored = checkpoints.restore(first, state(0))
            sound.append(restored["a"].tolist() == state(first)["a"].tolist() and int(restored["b"]) == first)
        try:
            for step in range(first + 1, first + 1 + int(sys.argv[2])):
                checkpoints.save(step, state(step))
            checkpoints.wait()
        finally:
            checkpoints.close()
except (StorageError, UserError) as failure:
    error = [type(failure).__name__, str(failure)]
print(json.dumps({"log": log, "sound": sound, "error": error}))
"""


def run(url: str, saves: int = 2) -> dict:
    """What two starts report that make so many saves each."""
    command = [sys.executable, "-c", SAVE, url, str(saves)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_arrays_that_arrive_short_are_read_again(faulty: FaultProxy, tmp_path: Path) -> None:  # noqa: F811
    url = f"gs://bucket/{tmp_path.name}"
    assert run(url)["sound"] == [True]
    faulty.short_once = r"/4/ocdbt"  # the arrays' own bytes in the last of its checkpoints
    found = run(url)
    assert (found["error"], found["sound"]) == (None, [True, True])
    assert any("could not be read, trying again: OUT_OF_RANGE" in line for line in found["log"])


@pytest.mark.timeout(300)
def test_checkpoints_come_through_faults(faulty: FaultProxy, tmp_path: Path) -> None:  # noqa: F811
    faulty.faults = Faults(unavailable=0.02, reset=0.02, lost=0.02, cut=0.02, short=0.04, stall=0.01, stall_seconds=2)
    found = run(f"gs://bucket/{tmp_path.name}")
    assert found["error"] is None
    assert found["sound"] in ([True], [])  # nothing to restore where the first ones were left out
    assert sum(faulty.met[kind] for kind in ("unavailable", "reset", "lost", "cut", "short")) > 3


def test_training_goes_on_without_a_save_or_four_but_not_for_ever(faulty: FaultProxy, tmp_path: Path) -> None:  # noqa: F811
    faulty.refuse("POST .*/ocdbt.process_0/", 404, "Not found.")
    found = run(f"gs://bucket/{tmp_path.name}", saves=7)
    assert [line.partition(":")[0] for line in found["log"]] == ["WARNING"] * 4
    assert "training goes on: store gs://bucket/" in found["log"][0]
    kind, text = found["error"]
    assert kind == "StorageError"
    assert "could not write 5 (" in text


@pytest.mark.parametrize(
    ("pattern", "doing"),
    [
        ("POST .*/ocdbt.process_0/", "write"),  # tensorstore
        ("POST .*/_METADATA", "write"),  # gcsfs, through epath
        ("GET .*/manifest.ocdbt", "read"),
    ],
)
def test_a_permission_that_is_missing_is_named(
    faulty: FaultProxy,  # noqa: F811
    tmp_path: Path,
    pattern: str,
    doing: str,
) -> None:
    url = f"gs://bucket/{tmp_path.name}"
    if doing == "read":
        run(url)
    faulty.refuse(pattern)
    kind, text = run(url)["error"]
    assert kind == "StorageError"
    assert f"{PRINCIPAL} has no permission to {doing} object" in text
    assert f"{tmp_path.name}/" in text
    assert "in bucket bucket" in text
    assert "\n" not in text
