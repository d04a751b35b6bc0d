"""The worker: `python -m nanocode_core.jobs.worker [SPEC]` builds one artifact.

SPEC is a JSON file; without it the spec is the variable NANOCODE_SPEC.

The same entry point runs in a local subprocess, a Kubernetes Job and every host of a JobSet. It
takes the lease of the work directory (waiting for another owner, if there is one), verifies the
inputs, calls the stage's build function and publishes what that left in `out`. Of a training job's
several processes (training/distributed.py) process 0 does all this; the others compute with it.
"""

import contextlib
import errno
import importlib
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from nanocode_core.errors import LeaseLost, PeersLost, StorageError, UserError
from nanocode_core.jobs import tether
from nanocode_core.jobs.job import PROGRESS, Job
from nanocode_core.jobs.provenance import Stopwatch, provenance
from nanocode_core.jobs.spec import BAD_INPUT, BUG, DONE, OUTAGE, PREEMPTED, VARIABLE, JobSpec
from nanocode_core.store import Artifact, Lease, Store
from nanocode_core.store.mirror import MARK
from nanocode_core.training import distributed

CLOCK = "clock.json"
"""The file in the work directory that adds up the seconds of all starts."""


def main(argv: list[str]) -> int:
    """Build the artifact of the spec in file argv[0] or the environment; returns the exit code."""
    tether.hold()
    signal.signal(signal.SIGTERM, _preempted)
    try:
        text = os.environ.get(VARIABLE) if not argv else Path(argv[0]).read_text()
        if text is None or len(argv) > 1:
            raise UserError(f"usage: python -m nanocode_core.jobs.worker SPEC.json, or with the spec in {VARIABLE}")
        spec = JobSpec.model_validate_json(text)
        with tempfile.TemporaryDirectory(prefix="nanocode-soul-") as scratch:
            run(_with_soul(spec, Path(scratch, "SOUL.md")))
        return DONE
    except (UserError, StorageError) as error:
        print(f"error: {error}", flush=True)
        return OUTAGE if isinstance(error, StorageError) and not error.lasting else BAD_INPUT
    except PeersLost as error:
        print(f"error: {error}", flush=True)
        return OUTAGE
    except LeaseLost as error:
        print(f"preempted: {error}", flush=True)
        return PREEMPTED
    except KeyboardInterrupt:
        return PREEMPTED
    except Exception as error:
        if _disk_is_full(error):
            place = getattr(error, "filename", None) or "store or cache"
            print(
                f"error: the disk is full ({place}); free some space, then run the same command again: "
                "it goes on from its last save",
                flush=True,
            )
            return BAD_INPUT
        traceback.print_exc()
        return BUG


def _with_soul(spec: JobSpec, path: Path) -> JobSpec:
    """The spec with the constitution that it carries, if it does, in the file `path`."""
    if spec.soul is None:
        return spec
    path.write_text(spec.soul, encoding="utf-8")
    return spec.model_copy(update={"config": spec.config.model_copy(update={"soul": str(path)})})


def _disk_is_full(error: BaseException | None) -> bool:
    """Whether an error, or one it came from, is a full disk: by its number, or in words from libraries in C++."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def run(spec: JobSpec) -> None:
    """Take the lease, build, publish. Returns at once where the artifact is there by then."""
    store = Store.of(spec.config)
    if not distributed.processes().primary:
        _assist(spec, store)
        return
    try:
        with store.lease(
            spec.stage,
            spec.fingerprint,
            seconds=spec.config.run.lease_seconds,
            waiting=lambda owner: print(f"{spec.stage}: waiting for {owner}, who is building it", flush=True),
            lost=_lost,
        ) as lease:
            if store.record(spec.stage, spec.fingerprint) is not None:
                print(f"{spec.stage}: built by another run meanwhile, reused", flush=True)
                return
            _build(spec, store, lease)
    except UserError:
        _tidy(spec, store)
        raise


def _build(spec: JobSpec, store: Store, lease: Lease) -> None:
    work = store.work_dir(spec.stage, spec.fingerprint)
    out = work / "out"
    with _saved(spec, store) as keep, Stopwatch(work / CLOCK) as watch:
        out.mkdir(parents=True, exist_ok=True)
        inputs = _inputs(spec, store)
        places = (work, out, store)
        job = Job(spec.stage, spec.fingerprint, spec.config, inputs, *places, identity=spec.identity, keep=keep)
        metrics = _call(spec, job)
    lease.check()
    store.publish(
        stage=spec.stage,
        version=spec.version,
        fingerprint=spec.fingerprint,
        config=spec.identity,
        inputs={name: artifact.record for name, artifact in inputs.items()},
        out=out,
        metrics=metrics,
        provenance=provenance(watch),
    )
    store.clear_work(spec.stage, spec.fingerprint)


@contextlib.contextmanager
def _saved(spec: JobSpec, store: Store) -> Iterator[Callable[[], None]]:
    """With a remote store: bring its copy of the work here, keep it up, and save once more at an early end.

    Gives the function that saves at once.
    """
    mirror = store.mirror(
        spec.stage,
        spec.fingerprint,
        spec.config.run.mirror_seconds,
        lambda text: print(f"{spec.stage}: {text}", flush=True),
    )
    if mirror is None:
        yield lambda: None
        return
    if mirror.restore():
        print(f"{spec.stage}: work in progress fetched from {store.root}", flush=True)
    with mirror:
        try:
            yield mirror.save
        except (KeyboardInterrupt, Exception):
            with contextlib.suppress(StorageError, LeaseLost):  # the first reason is the one to report
                mirror.save()
            raise


def _assist(spec: JobSpec, store: Store) -> None:
    """What a process other than the first does: compute, and leave leases, logs and the artifact to that one."""
    if store.record(spec.stage, spec.fingerprint) is not None:
        return
    work = store.work_dir(spec.stage, spec.fingerprint)
    with tempfile.TemporaryDirectory(prefix="nanocode-out-") as scratch:
        inputs = _inputs(spec, store)
        _call(spec, Job(spec.stage, spec.fingerprint, spec.config, inputs, work, Path(scratch), store, primary=False))


def _inputs(spec: JobSpec, store: Store) -> dict[str, Artifact]:
    return {name: store.open(name, key) for name, key in spec.inputs.items()}


def _call(spec: JobSpec, job: Job) -> dict[str, Any]:
    module, _, function = spec.build.partition(":")
    with distributed.company():
        metrics: dict[str, Any] = getattr(importlib.import_module(module), function)(job)
    return metrics


def _tidy(spec: JobSpec, store: Store) -> None:
    """Remove the work directory of a refused job if nothing was saved there."""
    work = store.work_dir(spec.stage, spec.fingerprint)
    if any(path.is_file() and path.name not in (CLOCK, MARK, PROGRESS) for path in work.rglob("*")):
        return
    with contextlib.suppress(StorageError):  # the refusal is what to report
        store.clear_work(spec.stage, spec.fingerprint)
    with contextlib.suppress(OSError):  # the folder of the stage stays while other work is in it
        work.parent.rmdir()


def _preempted(signum: int, frame: FrameType | None) -> None:
    """SIGTERM: raise in the main thread, so that `finally` blocks run and the lease is given back."""
    print("preempted: asked to stop", flush=True)
    raise KeyboardInterrupt


def _lost(reason: str) -> None:
    """Called by the heartbeat thread when the lease is gone: nothing may be written any more."""
    print(f"preempted: {reason}", flush=True)
    os._exit(PREEMPTED)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    # Threads of libraries (compilers, storage clients) must not keep a finished job alive.
    if threading.active_count() > 1:
        os._exit(code)
    sys.exit(code)
