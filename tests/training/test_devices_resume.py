"""Resuming on several devices, and on another number of them; the bench of kills in short.

    python test_devices_resume.py PLACE WORLD

does the part that needs four devices: one undisturbed run, and one that stops on the way and goes on.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import training_world

from nanocode_core.config import PROJECT
from nanocode_core.jobs.job import Job
from nanocode_core.model.gpt import GPT
from nanocode_core.model.shape import Shape
from nanocode_core.training.loop import Plan, train
from nanocode_core.training.metrics import CLOCKS
from nanocode_core.training.objectives import HostBatch, next_token, whole_rows

SHAPE = Shape(2, 32, 2, 2, 4, 64, 16, 1e4, 15.0, "float32")
STEPS = 12


def batch(step: int) -> HostBatch:
    return whole_rows(np.random.default_rng(step).integers(0, 64, (8, 17)))


def cut_at_8(step: int) -> HostBatch:
    if step == 8:
        raise RuntimeError("power cut")
    return batch(step)


def make_job(place: Path, world: Path, **parallel: int) -> Job:
    return training_world.make_job("pretrain", world, place, training_world.world_config(world, parallel=parallel))


def run(job: Job, batch: Any = batch) -> None:
    optimizer = training_world.optimizer(STEPS, SHAPE.width)
    train(job, GPT(SHAPE, 0), optimizer, Plan(STEPS, batch, next_token, tokens_per_step=128))


def metrics(job: Job) -> list[dict[str, float]]:
    lines = map(json.loads, job.metrics_path.read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in CLOCKS} for line in lines]


def on_four_devices(place: Path, world: Path) -> None:
    whole, cut = (make_job(place / name, world, fsdp=2) for name in ("whole", "cut"))
    run(whole)
    for job in (cut, make_job(place / "moved", world, fsdp=2)):
        with pytest.raises(RuntimeError, match="power cut"):
            run(job, cut_at_8)
    run(cut)
    one, other = training_world.saved_state(whole), training_world.saved_state(cut)
    same = {name: bool(np.array_equal(one[name], other[name])) for name in one}
    print(json.dumps({"same": same, "metrics": metrics(cut) == metrics(whole)}))


def test_four_devices_resume_exactly_and_one_device_goes_on_from_there(world: Path, tmp_path: Path) -> None:
    variables = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    command = [sys.executable, __file__, str(tmp_path), str(world)]
    ended = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "4 x cpu as 2 data x 2 fsdp" in ended.stdout
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["metrics"]
    assert len(found["same"]) > 10
    assert all(found["same"].values()), found["same"]
    # What four devices left after step 6, this process's single one finishes.
    whole, moved = make_job(tmp_path / "whole", world), make_job(tmp_path / "moved", world)
    run(moved)
    for one, other in zip(metrics(whole), metrics(moved), strict=True):
        assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_bench_of_random_kills_in_short() -> None:
    command = [sys.executable, str(PROJECT / "benchmarks" / "resume.py"), "--kills", "2", "--steps", "60"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["passed"]
    assert [found[name]["identical"] for name in ("one_device", "four_devices", "two_processes")] == [2, 2, 2]
    assert set(found["two_processes"]["survivors_exit_codes"]) <= {0, 75}  # 0: both were through by then


if __name__ == "__main__":
    on_four_devices(Path(sys.argv[1]), Path(sys.argv[2]))
