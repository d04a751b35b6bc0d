"""The one training loop: pretraining, SFT and DPO differ in their batches and their objective.

State after `step` steps is (params, optimizer state, step); a step is one jitted function of it and
of `batch(step)`, which is pure. So a run that is killed and goes on from a checkpoint repeats the
same computation, and ends with the same bytes. A batch is a mapping of host arrays whose first axis
is rows; it carries weights that add up to one over the whole batch, so micro-batches (gradient
accumulation) simply add up. An objective returns the weighted loss of its rows and further sums.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

from nanocode_core.errors import UserError
from nanocode_core.model.attention import choose_attention
from nanocode_core.model.flops import flops_per_token, model_flops_utilization
from nanocode_core.model.gpt import GPT
from nanocode_core.training.checkpoints import Checkpoints
from nanocode_core.training.interrupt import noted_signals
from nanocode_core.training.objectives import Batch, HostBatch, Objective

if TYPE_CHECKING:
    from nanocode_core.jobs.job import Job


CPU_TOKENS = 2048
PROGRESS_SECONDS = 5.0
"""Throughput is taken, and progress shown, over windows of at least so much time."""


class TrainState(NamedTuple):
    """Everything a run is, between two steps."""

    params: Any
    optimizer: Any
    step: Array


@dataclass(frozen=True)
class Periodic:
    """Metrics of the model after every so many steps, the last one excepted."""

    every: int
    measure: Callable[[GPT], Mapping[str, Any]]


@dataclass(frozen=True)
class Plan:
    """What to train, on what, for how long.

    Attributes:
        steps: optimizer steps.
        batch: pure function of the step (from 0).
        objective: see `Objective`.
        tokens_per_step: for the throughput.
        micro: rows computed at once; None: as suits the platform (see `choose_micro`).
        periodic: further metrics on the way; see `Periodic`.
    """

    steps: int
    batch: Callable[[int], HostBatch]
    objective: Objective
    tokens_per_step: int
    micro: int | None = None
    periodic: tuple[Periodic, ...] = ()


def train(job: "Job", model: GPT, optimizer: optax.GradientTransformation, plan: Plan) -> GPT:
    """Train from the newest checkpoint in job.work, or from `model`, and return the trained model.

    `model`'s arrays are not touched. Raises UserError where the loss stops being finite, and
    KeyboardInterrupt, after a save, where a signal asked to stop.
    """
    graph, params = nnx.split(model, nnx.Param)
    # Copies: the step donates its input, and the caller may still need the model it gave.
    params = jax.tree.map(jnp.array, params)
    state = TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))
    checkpoints = Checkpoints(job.work / "checkpoints", job.config.checkpoints)
    try:
        first = checkpoints.latest() or 0
        if first:
            state = checkpoints.restore(first, state)
            job.log(f"going on from the checkpoint after step {first} of {plan.steps}")
        job.rewind_metrics(first)
        micro = plan.micro or choose_micro(plan.batch(first)) if first < plan.steps else None
        job.log(
            f"{jax.device_count()} x {jax.devices()[0].device_kind}, {model.shape.compute}, "
            f"attention {choose_attention().__name__}, {micro or 'all'} rows at once"
        )
        step = jax.jit(make_step(graph, optimizer, plan.objective, micro), donate_argnums=0)
        state = _steps(job, graph, state, first, step, plan, checkpoints)
    finally:
        checkpoints.close()
    return nnx.merge(graph, state.params)


def choose_micro(batch: Batch, platform: str | None = None) -> int | None:
    """Rows of a batch to compute at once; None: all.

    On a CPU activations should stay in its caches: about 2,048 tokens at once are half as fast again
    as 8,192, in half the memory (LOG.md).
    """
    if (platform or jax.default_backend()) != "cpu":
        return None
    rows = len(batch["inputs"])
    tokens = batch["inputs"].size // rows
    return max(size for size in range(1, rows + 1) if rows % size == 0 and (size == 1 or size * tokens <= CPU_TOKENS))


def make_step(
    graph: Any, optimizer: optax.GradientTransformation, objective: Objective, micro: int | None
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """One optimizer step as a pure function (state, batch) -> (state, metrics)."""

    def loss(params: Any, batch: Batch) -> tuple[Array, dict[str, Array]]:
        return objective(nnx.merge(graph, params), batch)

    gradient = jax.value_and_grad(loss, has_aux=True)

    def run(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        (value, sums), gradients = _accumulate(partial(gradient, state.params), batch, micro)
        updates, inner = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": value, "gradient_norm": optax.tree.norm(gradients), **sums}
        return TrainState(params, inner, state.step + 1), metrics

    return run


def _accumulate(gradient: Callable[[Batch], Any], batch: Batch, micro: int | None) -> Any:
    """The sum of `gradient` over micro-batches of `micro` rows."""
    rows = len(next(iter(batch.values())))
    if micro is None or micro >= rows:
        return gradient(batch)
    if rows % micro:
        raise UserError(f"micro_sequences ({micro}) must divide the batch ({rows} rows)")
    parts = {name: x.reshape(rows // micro, micro, *x.shape[1:]) for name, x in batch.items()}
    empty = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(gradient, _first(parts)))
    return jax.lax.scan(lambda total, part: (jax.tree.map(jnp.add, total, gradient(part)), None), empty, parts)[0]


def _first(parts: Batch) -> Batch:
    return {name: array[0] for name, array in parts.items()}


def _steps(
    job: "Job",
    graph: Any,
    state: TrainState,
    first: int,
    step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]],
    plan: Plan,
    checkpoints: Checkpoints,
) -> TrainState:
    """Run steps first ... plan.steps - 1."""
    reporter = _Reporter(job, plan, flops_per_token(nnx.merge(graph, state.params).shape), first, checkpoints)
    with noted_signals() as request:
        for index in range(first, plan.steps):
            state, metrics = step(state, plan.batch(index))
            done = index + 1
            reporter.push(done, metrics)
            measures = [p.measure for p in plan.periodic if done % p.every == 0 and done < plan.steps]
            asked = request.asked
            saving = asked or done == plan.steps or checkpoints.due(done)
            if saving or measures:
                reporter.drain()
            for measure in measures:
                with reporter.paused():
                    job.metric(step=done, **measure(nnx.merge(graph, state.params)))
            if saving:
                with reporter.paused():
                    checkpoints.save(done, state)
            if asked:
                job.log(f"asked to stop: saved after step {done}")
                raise KeyboardInterrupt
        if request.asked:  # while the last checkpoint was written
            raise KeyboardInterrupt
    return state


class _Reporter:
    """Reads the metrics one step behind, so that the device never waits for Python; watches for NaN."""

    def __init__(self, job: "Job", plan: Plan, flops: int, first: int, checkpoints: Checkpoints) -> None:
        self._job, self._plan, self._flops = job, plan, flops
        self._checkpoints = checkpoints
        self._pending: deque[tuple[int, dict[str, Array]]] = deque()
        self._first, self._since, self._clock = first, first, time.monotonic()

    def push(self, done: int, metrics: dict[str, Array]) -> None:
        self._pending.append((done, metrics))
        if len(self._pending) > 1:
            self._read(*self._pending.popleft())

    def drain(self) -> None:
        while self._pending:
            self._read(*self._pending.popleft())

    def paused(self) -> "_Pause":
        """A context whose time does not count in the throughput."""
        return _Pause(self)

    def shift(self, seconds: float) -> None:
        self._clock += seconds

    def _read(self, done: int, metrics: dict[str, Array]) -> None:
        values = {name: float(value) for name, value in metrics.items()}
        if not math.isfinite(values["loss"]) or not math.isfinite(values["gradient_norm"]):
            raise UserError(self._diverged(done, values))
        seconds = time.monotonic() - self._clock
        if done == self._first + 1:
            # The first step includes compilation: start the clock after it.
            self._job.metric(step=done, **values)
            self._job.progress(
                done, self._plan.steps, "steps", f"loss {values['loss']:.4f}, compiled in {seconds:.1f} s"
            )
        elif seconds >= PROGRESS_SECONDS or done == self._plan.steps:
            speed = (done - self._since) * self._plan.tokens_per_step / max(seconds, 1e-9)
            utilization = model_flops_utilization(speed * self._flops)
            extra = {} if utilization is None else {"mfu": utilization}
            self._job.metric(step=done, **values, tokens_per_second=round(speed, 1), **extra)
            self._job.progress(done, self._plan.steps, "steps", f"loss {values['loss']:.4f}, {speed:,.0f} tokens/s")
        else:
            self._job.metric(step=done, **values)
            return
        self._since, self._clock = done, time.monotonic()

    def _diverged(self, done: int, values: dict[str, float]) -> str:
        good = self._checkpoints.latest()
        saved = f"the last good checkpoint is after step {good}" if good else "there is no checkpoint before it"
        return (
            f"{self._job.stage}: loss {values['loss']}, gradient norm {values['gradient_norm']} at step {done} "
            f"(batch {done - 1}); {saved}. Lower the learning rates ({self._job.stage} optimizer) and start again"
        )


class _Pause:
    def __init__(self, reporter: _Reporter) -> None:
        self._reporter = reporter

    def __enter__(self) -> None:
        self._start = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._reporter.shift(time.monotonic() - self._start)
