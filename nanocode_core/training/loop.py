"""The one training loop: pretraining, SFT and DPO differ in their batches and their objective.

A step is one compiled function of the state and of `batch(step)`, which is pure (program.py). So a
run that is killed and goes on from a checkpoint repeats the same computation, and ends with the
same bytes. While the state is read or made, a thread compiles the step. While the devices compute a
step, a thread makes the next batches, another writes the last checkpoint, and this one reads the
losses of the step before. With several processes all of them run this loop in the same order; what
only one can know they agree on (distributed.py).
"""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from nanocode_core.config.chips import find_chip
from nanocode_core.errors import UserError
from nanocode_core.model.backend import Backend
from nanocode_core.model.flops import count_parameters, flops_per_token
from nanocode_core.model.gpt import GPT
from nanocode_core.training.checkpoints import Checkpoints
from nanocode_core.training.distributed import Agreement, join, processes
from nanocode_core.training.goodput import Starts
from nanocode_core.training.health import Health
from nanocode_core.training.interrupt import StopRequest, noted_signals
from nanocode_core.training.metrics import Reporter
from nanocode_core.training.objectives import HostBatch, Objective
from nanocode_core.training.prefetch import Prefetch
from nanocode_core.training.profiling import Profile
from nanocode_core.training.program import Program, Step, TrainState, release
from nanocode_core.training.sharding import Parallelism, choose_parallelism, make_mesh

if TYPE_CHECKING:
    from nanocode_core.jobs.job import Job

SAVE, STOP = 1, 2
"""Wishes that the processes agree on; the larger counts."""


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
        batch: pure function of the step (from 0), called in a thread.
        objective: see `Objective`.
        tokens_per_step: for the throughput.
        micro: rows computed at once; None: as suits the platform.
        periodic: further metrics on the way; see `Periodic`.
    """

    steps: int
    batch: Callable[[int], HostBatch]
    objective: Objective
    tokens_per_step: int
    micro: int | None = None
    periodic: tuple[Periodic, ...] = ()


def train(job: "Job", model: GPT, optimizer: Callable[[Backend], optax.GradientTransformation], plan: Plan) -> GPT:
    """Train from the newest sound checkpoint of the job, or from `model`, and return the trained model.

    `model` is used up: on a device that is full of the run's state its arrays would have no room. The
    result lies on one local device.

    Args:
        job: gives the place of the checkpoints, the execution settings, and takes log and metrics.
        model: where to start.
        optimizer: makes the optimizer for the backend that is chosen here.
        plan: what to train on.

    Raises:
        UserError: the run has gone wrong (health.py), or all its checkpoints are damaged.
        KeyboardInterrupt: a signal asked to stop; the state is saved.
    """
    join()
    backend = _backend(job, model)
    program = Program(model.shape, optimizer(backend), plan.objective, backend, plan.micro)
    with _opened(job) as checkpoints:
        return _Run(job, plan, program, checkpoints, nnx.split(model, nnx.Param)[0]).train(model)


class _Run:
    """One start of a run."""

    def __init__(self, job: "Job", plan: Plan, program: Program, checkpoints: Checkpoints, graph: Any) -> None:
        self._job, self._plan, self._program, self._checkpoints = job, plan, program, checkpoints
        self._graph = graph
        self._starts = Starts(job.work / "starts") if job.primary else None
        self._agree = Agreement()
        self._finite = jax.jit(lambda tree: jnp.all(jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)])))

    def train(self, model: GPT) -> GPT:
        """The trained model."""
        job, plan = self._job, self._plan
        saved = self._checkpoints.newest()
        first, facts = (saved.step, saved.facts) if saved else (0, {})
        thread = ThreadPoolExecutor(1, "compile")
        compiling = thread.submit(self._compile, first)
        thread.shutdown(wait=False)  # who is told to go away leaves at once, whatever is being compiled
        if saved:
            release(model)
            state = self._checkpoints.restore(first, self._program.abstract({})[0])
            job.log(f"going on from the checkpoint after step {first} of {plan.steps}")
        else:
            state = self._program.initial(model)
        step, seconds = compiling.result()
        job.rewind_metrics(first, facts.get("metrics_bytes"))
        self._announce()
        health = Health(job.stage, facts.get("first_loss"), self._checkpoints.last_good)
        productive = float(facts.get("productive_seconds", 0.0))
        flops = flops_per_token(model.shape)
        reporter = Reporter(job, plan.steps, first, plan.tokens_per_step, flops, health, productive, seconds)
        with noted_signals() as request:
            state = self._steps(step, state, first, reporter, health, request)
            self._checkpoints.wait()
            self._finish(reporter.productive)
            if request.asked and processes().count == 1:  # while the last checkpoint was written
                raise KeyboardInterrupt
        return self._model(state)

    def _compile(self, first: int) -> tuple[Step, float]:
        """The compiled step, and the seconds that took; where no step is left to do, one that is not compiled."""
        if first == self._plan.steps:
            return self._program.step, 0.0
        start = time.perf_counter()
        return self._program.compile(self._plan.batch(first)), time.perf_counter() - start

    def _steps(
        self, step: Step, state: TrainState, first: int, reporter: Reporter, health: Health, request: StopRequest
    ) -> TrainState:
        job, plan, program = self._job, self._plan, self._program
        trace = job.out / "logs" / "profile" if job.config.training.profile and job.primary else None
        profile = Profile(trace, first, plan.steps, job.log)
        with Prefetch(lambda index: program.place(plan.batch(index)), first, plan.steps) as batches, profile:
            for index in range(first, plan.steps):
                done = index + 1
                with profile.step(index):
                    batch, waited = batches.get()
                    state, metrics = step(state, batch)
                reporter.push(done, metrics, waited)
                if profile.is_last(index):
                    reporter.drain()
                    with reporter.paused():
                        profile.stop()
                self._checkpoints.check()
                if self._starts:
                    self._starts.alive()
                measures = [p.measure for p in plan.periodic if done % p.every == 0 and done < plan.steps]
                wish = self._agree(STOP if request.asked else SAVE if self._checkpoints.due_by_clock() else 0)
                saving = wish or done == plan.steps or self._checkpoints.due_by_step(done)
                if saving or measures:
                    reporter.drain()
                for measure in measures:
                    with reporter.paused():
                        job.metric(step=done, **measure(self._model(state)))
                if saving and (health.well or done == plan.steps):
                    with reporter.paused(stall=True):
                        self._save(done, state, reporter.productive, health)
                if wish == STOP:
                    self._stop()
        return state

    def _stop(self) -> NoReturn:
        self._checkpoints.wait()
        step = self._checkpoints.last_good()
        self._job.log(f"asked to stop: {'nothing saved yet' if step is None else f'saved after step {step}'}")
        raise KeyboardInterrupt

    def _save(self, done: int, state: TrainState, productive: float, health: Health) -> None:
        if not self._finite(state.params):
            raise UserError(health.message(done, "a parameter is no finite number"))
        facts = {
            "first_loss": health.first_loss,
            "productive_seconds": productive,
            "metrics_bytes": self._job.metrics_bytes(),
        }
        self._checkpoints.save(done, state, facts)
        self._agree.forget()

    def _model(self, state: TrainState) -> GPT:
        """The model with its parameters whole on one device of this process."""
        params = state.params
        mesh = self._program.backend.mesh
        if mesh is not None:
            whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
            params = jax.tree.map(lambda x: x.addressable_data(0), jax.jit(lambda p: p, out_shardings=whole)(params))
        model: GPT = nnx.merge(self._graph, params)
        return model

    def _announce(self) -> None:
        backend = self._program.backend
        devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
        if backend.mesh is not None:
            devices += " as " + " x ".join(f"{size} {axis}" for axis, size in backend.mesh.shape.items() if size > 1)
        if processes().count > 1:
            devices += f" in {processes().count} processes"
        self._job.log(f"{devices}, {self._program.shape.compute}, attention {backend.attention.__name__}")

    def _finish(self, productive: float) -> None:
        if self._starts:
            wall = self._starts.seconds()
            self._job.metric(
                step=self._plan.steps,
                goodput=round(min(1.0, productive / max(wall, 1e-9)), 4),
                productive_seconds=round(productive, 3),
                wall_seconds=round(wall, 3),
                starts=self._starts.count,
            )


def _backend(job: "Job", model: GPT) -> Backend:
    """How the run is computed on the devices there are."""
    count = jax.device_count()
    if count == 1:
        return Backend.of(remat=job.config.model.remat)
    device = jax.local_devices()[0]
    chip = find_chip(device.device_kind)
    limit = (device.memory_stats() or {}).get("bytes_limit")
    memory = limit or (chip.memory_gib * 2**30 if chip and chip.memory_gib else None)
    parallel = job.config.parallel
    parameters = count_parameters(model.shape)["total"]
    axes: Parallelism = choose_parallelism(count, parameters, memory, parallel.fsdp, parallel.tensor)
    return Backend.of(mesh=make_mesh(axes), remat=job.config.model.remat)


@contextmanager
def _opened(job: "Job") -> Iterator[Checkpoints]:
    checkpoints = Checkpoints(job.checkpoints, job.config.checkpoints, job.log, job.keep)
    try:
        yield checkpoints
    finally:
        checkpoints.close()
