"""The loop in one process: exact resumes, signals, what stops a run, what it says about itself."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import training_world
from flax import nnx

from nanocode_core.errors import UserError
from nanocode_core.jobs.job import Job
from nanocode_core.model.gpt import GPT
from nanocode_core.model.shape import Shape
from nanocode_core.model.weights import named_arrays
from nanocode_core.training import health, metrics
from nanocode_core.training.checkpoints import Checkpoints
from nanocode_core.training.loop import Periodic, Plan, train
from nanocode_core.training.metrics import CLOCKS, percentile
from nanocode_core.training.objectives import HostBatch, next_token, whole_rows

SHAPE = Shape(1, 16, 2, 2, 4, 50, 16, 1e4, 15.0, "float32")
STEPS = 12


def batch(step: int) -> HostBatch:
    return whole_rows(np.random.default_rng(step).integers(0, 50, (4, 17)))


@pytest.fixture
def job(world: Path, tmp_path: Path) -> Job:
    return training_world.make_job("pretrain", world, tmp_path, training_world.world_config(world))


def run(job: Job, batch: Any = batch, periodic: tuple[Periodic, ...] = (), steps: int = STEPS) -> dict[str, np.ndarray]:
    plan = Plan(steps, batch, next_token, tokens_per_step=64, periodic=periodic)
    optimizer = training_world.optimizer(STEPS, SHAPE.width)
    return {name: np.array(x) for name, x in named_arrays(train(job, GPT(SHAPE, 0), optimizer, plan)).items()}


def read(job: Job) -> list[dict[str, Any]]:
    return [json.loads(line) for line in job.metrics_path.read_text().splitlines()]


def lines(job: Job) -> list[dict[str, Any]]:
    """The metrics without what the clock decides."""
    return [{k: v for k, v in line.items() if k not in CLOCKS} for line in read(job)]


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


Undisturbed = tuple[dict[str, np.ndarray], dict[str, np.ndarray], list[dict[str, Any]]]
"""Parameters, the state in the last checkpoint, metrics."""


@pytest.fixture(scope="module")
def undisturbed(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    work = tmp_path_factory.mktemp("undisturbed")
    other = training_world.make_job("pretrain", world, work, training_world.world_config(world))
    return run(other), training_world.saved_state(other), lines(other)


def at_line(job: Job, number: int, act: Callable[[], None]) -> None:
    """Call `act` once, when the metrics line of this number is written."""
    write, count = job.metric, iter(range(1, 1000))

    def metric(**values: Any) -> None:
        write(**values)
        if next(count) == number:
            act()

    job.metric = metric  # type: ignore[method-assign]


def test_who_is_told_to_go_away_does_not_wait_for_the_compiler(job: Job) -> None:
    ended = threading.Event()

    def long(step: int) -> HostBatch:  # stands for the compiler, which asks for the shape of a batch first
        threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        ended.wait(100)
        return batch(step)

    def leave(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, leave)  # as the worker does
    begin = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            run(job, long)
        assert time.monotonic() - begin < 60
    finally:
        ended.set()
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("line", [1, 5, STEPS])
def test_sigterm_saves_after_the_step_in_flight_and_the_next_start_goes_on(
    job: Job, world: Path, undisturbed: Undisturbed, line: int, capsys: pytest.CaptureFixture[str]
) -> None:
    at_line(job, line, lambda: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        run(job)
    assert signal.getsignal(signal.SIGTERM) is before
    # The line of a step is written while the next one runs.
    saved = min(line + 1, STEPS)
    assert (f"saved after step {saved}" in capsys.readouterr().out) == (line < STEPS)
    asked: list[int] = []
    again = training_world.make_job("pretrain", world, job.work, job.config)
    assert same(run(again, lambda step: (asked.append(step), batch(step))[1]), undisturbed[0])
    # The first one is asked for twice: the step is compiled for batches of its shape.
    assert asked == [*range(saved, min(saved + 1, STEPS)), *range(saved, STEPS)]
    assert same(training_world.saved_state(again), undisturbed[1])
    assert any("momentum" in name for name in undisturbed[1]), "the optimizer's state is part of it"
    assert lines(again) == undisturbed[2]


def test_a_run_that_was_cut_short_has_the_same_metrics_after_a_resume(job: Job, world: Path, tmp_path: Path) -> None:
    def measure(model: GPT) -> dict[str, float]:
        return {"sum": float(sum(np.abs(x).sum() for x in map(np.asarray, named_arrays(model).values())))}

    periodic = (Periodic(2, measure),)

    def failing(step: int) -> HostBatch:
        if step == 8:
            raise RuntimeError("power cut")
        return batch(step)

    with pytest.raises(RuntimeError, match="power cut"):
        run(job, failing, periodic)
    assert [line["step"] for line in read(job)][-1] > 6, "it got beyond its last checkpoint"
    run(job, batch, periodic)
    whole = training_world.make_job("pretrain", world, tmp_path / "whole", job.config)
    run(whole, batch, periodic)
    assert lines(job) == lines(whole)
    assert [line["step"] for line in lines(job) if "sum" in line] == [2, 4, 6, 8, 10]
    assert [line["step"] for line in lines(job) if "loss" in line] == list(range(1, STEPS + 1))


def test_the_metrics_of_what_came_after_training_are_not_doubled(job: Job) -> None:
    run(job)
    once = lines(job)
    job.metric(step=STEPS, after=1.0)
    run(job)
    assert lines(job) == once


def test_a_loss_that_is_not_finite_stops_and_names_step_and_checkpoint(job: Job) -> None:
    def poisoned(step: int) -> HostBatch:
        good = batch(step)
        return {**good, "weights": good["weights"] * np.float32(np.nan)} if step == 7 else good

    with pytest.raises(UserError, match=r"loss nan.* at step 8 \(batch 7\); the last good checkpoint is after step 6"):
        run(job, poisoned)
    saved = Checkpoints(job.work / "checkpoints", job.config.checkpoints).newest()
    assert saved is not None
    assert saved.step == 6


def test_a_loss_that_explodes_stops_and_leaves_no_checkpoint_of_it(job: Job, monkeypatch: Any) -> None:
    monkeypatch.setattr(health, "PATIENCE", 4)

    def exploding(step: int) -> HostBatch:
        good = batch(step)
        return {**good, "weights": good["weights"] * np.float32(4)} if step >= 4 else good

    with pytest.raises(UserError, match=r"exploded.* since step 5 .* step 8 \(batch 7\).* is after step 3"):
        run(job, exploding)
    saved = Checkpoints(job.work / "checkpoints", job.config.checkpoints).newest()
    assert saved is not None
    assert saved.step == 3
    assert saved.facts["first_loss"] == pytest.approx(np.log(50), abs=0.1)


def test_one_bad_batch_only_puts_the_save_off(job: Job, monkeypatch: Any) -> None:
    saves: list[int] = []
    save = Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", lambda self, step, *rest: (saves.append(step), save(self, step, *rest)))

    def outlier(step: int) -> HostBatch:
        good = batch(step)
        return {**good, "weights": good["weights"] * np.float32(4)} if step in (5, 11) else good

    run(job, outlier)
    assert saves == [3, 9, STEPS]


def test_a_checkpoint_with_a_parameter_that_is_no_number_is_not_written(job: Job, monkeypatch: Any) -> None:
    import optax

    broken = optax.stateless(lambda updates, params: jax.tree.map(lambda x: x * np.inf, updates))
    monkeypatch.setattr(training_world, "optimizer", lambda steps, width: lambda backend: broken)
    monkeypatch.setattr(health.Health, "check", lambda self, done, values: None)
    with pytest.raises(UserError, match="a parameter is no finite number at step 3"):
        run(job)
    assert Checkpoints(job.work / "checkpoints", job.config.checkpoints).newest() is None


def test_a_run_uses_the_given_model_up(job: Job) -> None:
    for steps in (3, 6):  # from the start, and from the checkpoint after step 3
        model = GPT(SHAPE, 0)
        train(job, model, training_world.optimizer(steps, 16), Plan(steps, batch, next_token, 64))
        assert all(array.is_deleted() for array in jax.tree.leaves(nnx.state(model)))


def test_the_next_batches_are_made_while_a_step_runs_and_no_further_ahead(job: Job) -> None:
    made: list[int] = []
    lead: list[int] = []

    def noting(step: int) -> HostBatch:
        assert threading.current_thread() is not threading.main_thread()
        made.append(step)
        return batch(step)

    def wait(model: GPT) -> dict[str, float]:
        deadline = time.monotonic() + 5
        while len(made) < 8 and time.monotonic() < deadline:
            time.sleep(0.001)
        lead.append(made[-1])
        return {}

    run(job, noting, (Periodic(5, wait),), steps=8)
    # Five steps are done; two more batches are ready, and one is made as soon as one of them is taken.
    assert lead == [6]
    assert made == [0, *range(8)]  # the first one also for its shape
    assert not [thread for thread in threading.enumerate() if thread.name in ("prefetch", "checkpoint")]


def test_the_clocks_of_a_run_say_where_the_time_went(job: Job, monkeypatch: Any) -> None:
    monkeypatch.setattr(metrics, "PROGRESS_SECONDS", 0.0)

    def slow(step: int) -> HostBatch:
        time.sleep(0.05)
        return batch(step)

    run(job, slow)
    loss_lines = [line for line in read(job) if "loss" in line]
    assert loss_lines[0]["compile_seconds"] > 0
    windows = loss_lines[1:]
    for line in windows:
        assert 0 <= line["input_wait"] <= 1
        assert 0 < line["step_seconds_p50"] <= line["step_seconds_p90"] <= line["step_seconds_p99"]
        assert line["memory_gib"] > 0.05
        assert line["tokens_per_second"] == pytest.approx(64 / line["step_seconds_p50"], rel=0.05)
    # A step of this model takes about a millisecond; the rest is spent waiting for the slow batches.
    assert max(line["input_wait"] for line in windows) > 0.5
    assert any(line["checkpoint_stall_seconds"] > 0 for line in windows)
    last = read(job)[-1]
    assert last["starts"] == 1
    assert 0 < last["productive_seconds"] < last["wall_seconds"]
    # All but the waits counts as productive, so the share is small here.
    assert last["goodput"] == pytest.approx(last["productive_seconds"] / last["wall_seconds"], abs=1e-3)
    assert set().union(*map(set, read(job))) - CLOCKS == {"step", "loss", "gradient_norm"}


def test_goodput_counts_what_a_restart_repeats_as_lost(job: Job) -> None:
    def failing(step: int) -> HostBatch:
        if step == 8:
            raise RuntimeError("power cut")
        return batch(step)

    with pytest.raises(RuntimeError, match="power cut"):
        run(job, failing)
    saved = Checkpoints(job.work / "checkpoints", job.config.checkpoints).newest()
    assert saved is not None
    run(job)
    last = read(job)[-1]
    assert last["starts"] == 2
    assert saved.facts["productive_seconds"] < last["productive_seconds"] < last["wall_seconds"]


def test_percentiles_are_values_of_the_sample() -> None:
    values = [float(x) for x in range(100, 0, -1)]
    assert [percentile(values, p) for p in (50, 90, 99, 100)] == [50, 90, 99, 100]
    assert percentile([3.0], 99) == 3.0
    assert percentile([1.0, 9.0], 50) == 1.0
