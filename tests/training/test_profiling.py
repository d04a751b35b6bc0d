"""A trace is there, holds the steps it says, and parses with the reader that xprof's format comes with."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import training_world

from nanocode_core.config import load_config
from nanocode_core.model.gpt import GPT
from nanocode_core.model.shape import Shape
from nanocode_core.training.loop import Plan, train
from nanocode_core.training.metrics import CLOCKS
from nanocode_core.training.objectives import HostBatch, next_token, whole_rows

SHAPE = Shape(1, 16, 2, 2, 4, 50, 16, 1e4, 15.0, "float32")


def batch(step: int) -> HostBatch:
    return whole_rows(np.random.default_rng(step).integers(0, 50, (4, 17)))


@pytest.mark.parametrize(("steps", "traced"), [(9, [3, 4, 5]), (2, [0, 1])])
def test_a_profiled_run_leaves_a_trace_of_its_steady_steps_in_the_logs(
    world: Path, tmp_path: Path, steps: int, traced: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    changed = {"training": {**training_world.SETTINGS["training"], "profile": True}}
    job = training_world.make_job("pretrain", world, tmp_path, training_world.world_config(world, **changed))
    train(job, GPT(SHAPE, 0), training_world.optimizer(steps, 16), Plan(steps, batch, next_token, 64))
    traces = list((job.out / "logs" / "profile").glob("plugins/profile/*/*.xplane.pb"))
    assert len(traces) == 1
    data = jax.profiler.ProfileData.from_file(str(traces[0]))
    events = [event for plane in data.planes for line in plane.lines for event in line.events]
    found = [dict(event.stats)["step_num"] for event in events if event.name == "train"]
    assert sorted(found) == traced
    # The compiled program itself shows, not only Python's view of it.
    assert any("dot" in event.name for event in events)
    assert f"a trace of steps {traced[0] + 1} to {traced[-1] + 1}" in capsys.readouterr().out
    # The metrics are those of any run.
    lines = [json.loads(line) for line in job.metrics_path.read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, steps + 1))
    assert set().union(*lines) - CLOCKS == {"step", "loss", "gradient_norm"}


def test_profiling_is_off_by_default_and_changes_no_identity() -> None:
    config = load_config("smoke")
    assert not config.training.profile
    assert load_config("smoke", ["training.profile=true"]).identity() == config.identity()
