import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from nanocode_core.config import PROJECT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SERVICES = "from cli.services import {0}; {0}()"


@pytest.fixture
def place(tmp_path):
    """A directory for Prefect and the store of this test; what is still up at the end is stopped."""
    if (PROJECT / "prefect.toml").exists():
        pytest.skip("nanocode up is running in this project")
    yield tmp_path
    call(tmp_path, "-c", SERVICES.format("down"))


def call(place, *args):
    env = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    env |= {
        "PREFECT_HOME": str(place / "prefect"),
        "PREFECT_SERVER_API_PORT": "4391",
        "NANOCODE_STORE": str(place / "store"),
        "NANOCODE_CACHE": str(place / "cache"),
    }
    return subprocess.run(
        [sys.executable, *args], cwd=PROJECT, env=env, capture_output=True, text=True, timeout=300, check=False
    )


def prefect(*args):
    """A plain `prefect` command of the user: nothing in the environment tells it where the server is."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    return subprocess.run(
        [sys.executable, "-m", "prefect", *args], cwd=PROJECT, env=env, capture_output=True, text=True, timeout=300
    )


def live(place):
    """Processes that this test's services or runs have started."""
    found = []
    for process in psutil.process_iter():
        try:
            told = process.environ().get("PREFECT_HOME", "") + " ".join(process.cmdline())
            if str(place) in told and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_for(condition, seconds, what):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"{what} did not happen within {seconds} s"
        time.sleep(0.3)
    return value


def jobs(place, stage):
    """Worker processes that build `stage`."""
    found = []
    for process in live(place):
        try:
            line = process.cmdline()
            if "nanocode_core.jobs.worker" in line and json.loads(Path(line[-1]).read_text())["stage"] == stage:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def test_up_runs_deployments_and_down_leaves_nothing(place):
    first = call(place, "-c", SERVICES.format("up"))
    assert first.returncode == 0, first.stderr
    assert "Prefect UI: http://127.0.0.1:4391" in first.stdout
    started = {process.pid for process in live(place)}
    again = call(place, "-c", SERVICES.format("up"))
    assert again.returncode == 0, again.stderr
    assert {process.pid for process in live(place)} == started

    listed = prefect("deployment", "ls")
    assert all(f"nanocode/{name}" in listed.stdout for name in ("full-speedrun", "synthetic-data", "nightly-eval"))
    run = ["deployment", "run", "nanocode/full-speedrun", "--param", "preset=smoke"]
    done = prefect(*run, "--param", 'stages=["corpus"]', "--watch")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in (place / "store" / "artifacts").iterdir()] == ["corpus"]
    refused = prefect("deployment", "run", "nanocode/nightly-eval", "--watch")
    assert refused.returncode == 1
    assert "BadInput" in refused.stdout

    begun = prefect(*run, "--param", 'set=["training.steps=1000000"]')
    name = re.search(r"UUID: (\S+)", begun.stdout)[1]
    job = wait_for(lambda: jobs(place, "pretrain"), 120, "pretraining")
    prefect("flow-run", "cancel", name)
    wait_for(lambda: not any(process.is_running() for process in job), 60, "the end of the job")
    wait_for(lambda: "Cancelled" in prefect("flow-run", "inspect", name).stdout, 60, "the state Cancelled")

    stopped = call(place, "-c", SERVICES.format("down"))
    assert stopped.stdout == "stopped the worker and the server\n"
    assert live(place) == []
    assert not (PROJECT / "prefect.toml").exists()
    assert call(place, "-c", SERVICES.format("down")).stdout == "nothing is running\n"


def test_down_in_the_middle_of_a_run_ends_its_job(place):
    assert call(place, "-c", SERVICES.format("up")).returncode == 0
    prefect("deployment", "run", "nanocode/full-speedrun", "--param", "preset=demo")
    wait_for(lambda: jobs(place, "corpus") or jobs(place, "tokenizer"), 120, "the first job")
    call(place, "-c", SERVICES.format("down"))
    assert live(place) == []
