import json
import os
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import training_world

from nanocode_core.config.model import Checkpoints as CheckpointsConfig
from nanocode_core.config.model import Optimizer
from nanocode_core.errors import UserError
from nanocode_core.jobs.job import Job
from nanocode_core.model.gpt import GPT, Shape
from nanocode_core.model.weights import named_arrays
from nanocode_core.training.checkpoints import Checkpoints
from nanocode_core.training.loop import Periodic, Plan, train
from nanocode_core.training.objectives import HostBatch, next_token, whole_rows
from nanocode_core.training.optimizer import build_optimizer

SHAPE = Shape(1, 16, 2, 2, 4, 50, 16, 1e4, 15.0, "float32")
STEPS = 12


def batch(step: int) -> HostBatch:
    return whole_rows(np.random.default_rng(step).integers(0, 50, (4, 17)))


@pytest.fixture
def job(world: Path, tmp_path: Path) -> Job:
    return training_world.make_job("pretrain", world, tmp_path, training_world.world_config(world))


def run(job: Job, batch: Any = batch, periodic: tuple[Periodic, ...] = ()) -> dict[str, np.ndarray]:
    plan = Plan(STEPS, batch, next_token, tokens_per_step=64, periodic=periodic)
    optimizer = build_optimizer(Optimizer(), STEPS, SHAPE.width)
    return {name: np.asarray(x) for name, x in named_arrays(train(job, GPT(SHAPE, 0), optimizer, plan)).items()}


def lines(job: Job) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in ("time", "tokens_per_second")} for line in _read(job)]


def _read(job: Job) -> list[dict[str, Any]]:
    return [json.loads(line) for line in job.metrics_path.read_text().splitlines()]


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def undisturbed(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    work = tmp_path_factory.mktemp("undisturbed")
    other = training_world.make_job("pretrain", world, work, training_world.world_config(world))
    return run(other)


@pytest.mark.parametrize("stop_at", [1, 5, STEPS])
def test_sigterm_saves_at_the_end_of_the_step_and_the_next_start_goes_on(
    job: Job, undisturbed: dict[str, np.ndarray], stop_at: int, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[int] = []

    def stopping(step: int) -> HostBatch:
        seen.append(step)
        if step == stop_at - 1 and seen.count(step) == 2:  # the first call only looks at the shape
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(step)

    if stop_at != 1:
        seen.append(stop_at - 1)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        run(job, stopping)
    assert signal.getsignal(signal.SIGTERM) is before
    assert f"saved after step {stop_at}" in capsys.readouterr().out
    steps: list[int] = []
    assert same(run(job, lambda step: (steps.append(step), batch(step))[1]), undisturbed)
    assert sorted(set(steps)) == list(range(stop_at, STEPS))
    assert [line["step"] for line in lines(job)] == sorted({line["step"] for line in lines(job)})


def test_periodic_metrics_are_the_same_after_a_resume(job: Job, world: Path, tmp_path: Path) -> None:
    def measure(model: GPT) -> dict[str, float]:
        return {"sum": float(sum(np.abs(x).sum() for x in map(np.asarray, named_arrays(model).values())))}

    periodic = (Periodic(2, measure),)

    def failing(step: int) -> HostBatch:
        if step == 8:
            raise RuntimeError("power cut")
        return batch(step)

    with pytest.raises(RuntimeError, match="power cut"):
        run(job, failing, periodic)
    run(job, batch, periodic)
    whole = training_world.make_job("pretrain", world, tmp_path / "whole", job.config)
    run(whole, batch, periodic)
    measured = [[(line["step"], line["sum"]) for line in lines(j) if "sum" in line] for j in (job, whole)]
    assert measured[0] == measured[1]
    assert [step for step, _ in measured[0]] == [2, 4, 6, 8, 10]


def test_a_loss_that_is_not_finite_stops_and_names_step_and_checkpoint(job: Job) -> None:
    def poisoned(step: int) -> HostBatch:
        good = batch(step)
        return {**good, "weights": good["weights"] * np.float32(np.nan)} if step == 7 else good

    with pytest.raises(UserError, match=r"loss nan.* at step 8 \(batch 7\); the last good checkpoint is after step 6"):
        run(job, poisoned)
    assert Checkpoints(job.work / "checkpoints", job.config.checkpoints).latest() == 6


def test_the_given_model_is_left_as_it_was(job: Job) -> None:
    model = GPT(SHAPE, 0)
    before = {name: np.asarray(x).copy() for name, x in named_arrays(model).items()}
    train(job, model, build_optimizer(Optimizer(), 3, 16), Plan(3, batch, next_token, 64))
    assert same(before, {name: np.asarray(x) for name, x in named_arrays(model).items()})


def state(value: float) -> dict[str, jax.Array]:
    return {"a": jax.numpy.full((3, 4), value), "b": jax.numpy.asarray(int(value))}


def test_half_written_checkpoints_are_never_picked(tmp_path: Path) -> None:
    config = CheckpointsConfig(keep=2)
    checkpoints = Checkpoints(tmp_path, config)
    for step in (3, 6, 9):
        checkpoints.save(step, state(step))
    checkpoints.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["6", "9"]
    # What a kill in the middle of a save leaves: Orbax's temporary directory.
    (tmp_path / "9").rename(tmp_path / "9.orbax-checkpoint-tmp")
    again = Checkpoints(tmp_path, config)
    assert again.latest() == 6
    restored = again.restore(6, state(0))
    assert np.array_equal(restored["a"], state(6)["a"])
    assert int(restored["b"]) == 6
    again.save(9, state(9))
    assert again.latest() == 9
    again.close()


def test_checkpoints_are_due_by_steps_and_by_the_clock(tmp_path: Path) -> None:
    by_step = Checkpoints(tmp_path / "a", CheckpointsConfig(minutes=10, steps=5))
    assert [step for step in range(1, 12) if by_step.due(step)] == [5, 10]
    by_clock = Checkpoints(tmp_path / "b", CheckpointsConfig(minutes=1e-9))
    assert by_clock.due(1)
    by_step.close()
    by_clock.close()
