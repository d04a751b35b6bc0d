"""kill -9 of any process of a whole run, at any time: the same command ends with the same content."""

import json
import os
import random
import subprocess
import sys
import time

import psutil
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

KILLS = 10


def start(tmp_path, name):
    env = {**os.environ, "PREFECT_HOME": str(tmp_path / "prefect"), "NANOCODE_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "cli.main", "speedrun", "--preset", "smoke", "--store", str(tmp_path / name)]
    # Saving often makes the kills land between saves as well as in them.
    command += ["--set", "checkpoints.steps=1", "--set", "run.lease_seconds=5"]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def family(process):
    try:
        root = psutil.Process(process.pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def digests(output):
    stages = json.loads(output.splitlines()[-1])["stages"]
    return {name: stage["digest"] for name, stage in stages.items() if name != "report"}


def test_a_run_killed_again_and_again_ends_like_an_undisturbed_one(tmp_path):
    undisturbed, _ = start(tmp_path, "a").communicate()
    expected = digests(undisturbed)
    rng = random.Random(os.environ.get("NANOCODE_TEST_SEED", "7"))
    killed = []
    store = 0
    while len(killed) < KILLS:
        process = start(tmp_path, f"b{store}")
        time.sleep(rng.uniform(3, 20))
        victims = family(process)
        if process.poll() is not None:  # through before its kill: the next one begins anew
            output, _ = process.communicate()
            assert process.returncode == 0, output
            assert digests(output) == expected
            store += 1
            continue
        for victim in victims and [rng.choice(victims)]:
            try:
                killed.append(" ".join(victim.cmdline()[1:4]))
                victim.kill()
            except psutil.NoSuchProcess:
                continue
        process.communicate()
        left = [p for p in victims if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        _, left = psutil.wait_procs(left, timeout=10)
        assert left == [], "a process outlived the run"
    print("killed:", *killed, sep="\n  ")
    output, _ = (process := start(tmp_path, f"b{store}")).communicate()
    assert process.returncode == 0, output
    assert digests(output) == expected
