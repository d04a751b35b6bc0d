"""Several real processes of one job, by gloo on the CPU: the same result, saves they agree on, and the loss of one."""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import training_world
from jax.errors import JaxRuntimeError

from nanocode_core.errors import PeersLost, UserError
from nanocode_core.jobs.spec import PREEMPTED, JobSpec
from nanocode_core.store import Store
from nanocode_core.training import distributed
from nanocode_core.training.metrics import CLOCKS

STEPS = 30
KEY = "f" * 16


@pytest.fixture(scope="module")
def inputs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the artifacts tokenizer and tokens."""
    root = tmp_path_factory.mktemp("inputs")
    for name in ("tokenizer", "tokens"):
        shutil.copytree(world / name, root / "out" / name)
        Store(str(root / "store")).publish(name, 1, KEY, {}, {}, root / "out" / name, {}, {})
    return root / "store"


def start(commands: list[list[str]], devices: int = 1) -> list["subprocess.Popen[str]"]:
    """Start a process a command, with the interpreter's arguments given, as those of one job."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    started = []
    for index, command in enumerate(commands):
        own = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        if len(commands) > 1:
            own |= {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(len(commands)),
                "JAX_PROCESS_ID": str(index),
            }
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        started.append(subprocess.Popen([sys.executable, *command], env={**os.environ, **own}, text=True, **pipes))
    return started


class Run:
    """A pretraining job in a store of its own."""

    def __init__(self, inputs: Path, world: Path, root: Path) -> None:
        shutil.copytree(inputs, root / "store")
        config = training_world.world_config(
            world,
            run={"store": str(root / "store"), "cache": str(world / "cache"), "lease_seconds": 2},
            training={**training_world.SETTINGS["training"], "steps": STEPS, "validate_every": 10},
            checkpoints={"minutes": 0.005, "steps": 4},  # by the clock of process 0, too
        )
        self.store = Store(config.run.store)
        self.work = self.store.work_dir("pretrain", KEY)
        self.spec = root / "spec.json"
        build = "nanocode_core.training.pretrain:build"
        named = {name: KEY for name in ("tokenizer", "tokens")}
        spec = JobSpec(
            stage="pretrain", version=1, build=build, fingerprint=KEY, identity={}, inputs=named, config=config
        )
        self.spec.write_text(spec.model_dump_json())

    def start(self, processes: int, devices: int = 1) -> list["subprocess.Popen[str]"]:
        return start([["-m", "nanocode_core.jobs.worker", str(self.spec)]] * processes, devices)

    def finish(self, processes: int, devices: int = 1) -> list[str]:
        """Run to the end; what the processes printed."""
        started = self.start(processes, devices)
        printed = [process.communicate(timeout=200)[0] for process in started]
        assert [process.returncode for process in started] == [0] * processes, "\n".join(printed)
        return printed

    def wait_for_checkpoint(self, started: list["subprocess.Popen[str]"]) -> None:
        deadline = time.monotonic() + 150
        while not list(self.work.glob("checkpoints/*/manifest.json")):
            assert time.monotonic() < deadline
            ended = [process.communicate()[0] for process in started if process.poll() is not None]
            assert not ended, ended
            time.sleep(0.002)

    @property
    def out(self) -> Path:
        return self.store.open("pretrain", KEY).path

    def content(self) -> dict[str, str]:
        return {name: hashlib.sha256((self.out / name).read_bytes()).hexdigest() for name in os.listdir(self.out)
                if name not in ("logs", "artifact.json")}  # fmt: skip

    def metrics(self) -> list[dict[str, Any]]:
        lines = map(json.loads, (self.out / "logs" / "metrics.jsonl").read_text().splitlines())
        return [{name: value for name, value in line.items() if name not in CLOCKS} for line in lines]


@pytest.fixture(scope="module")
def together(inputs: Path, world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[str]]:
    """The job, done undisturbed by two processes."""
    run = Run(inputs, world, tmp_path_factory.mktemp("together"))
    return run, run.finish(2)


def test_two_processes_compute_what_one_computes(
    together: tuple[Run, list[str]], inputs: Path, world: Path, tmp_path: Path
) -> None:
    alone = Run(inputs, world, tmp_path)
    alone.finish(1)
    both, printed = together
    ours, theirs = both.metrics(), alone.metrics()
    assert [line.keys() for line in ours] == [line.keys() for line in theirs]
    for one, other in zip(ours, theirs, strict=True):
        numbers = {name: value for name, value in other.items() if isinstance(value, float)}
        # The same sums in another order: the difference grows with the steps, from the last bit on.
        tolerance = 1e-5 if one["step"] <= 10 else 1e-3
        assert {name: one[name] for name in numbers} == pytest.approx(numbers, rel=tolerance)
    assert both.content().keys() == alone.content().keys()
    # Only the first process talks, and it says what the devices are.
    assert "2 x cpu as 2 data in 2 processes" in printed[0]
    assert not [line for line in printed[1].splitlines() if line.startswith("pretrain:")]


def test_a_signal_to_one_process_stops_all_after_the_same_step(
    together: tuple[Run, list[str]], inputs: Path, world: Path, tmp_path: Path
) -> None:
    run = Run(inputs, world, tmp_path)
    started = run.start(2)
    run.wait_for_checkpoint(started)
    started[1].send_signal(signal.SIGTERM)
    printed = [process.communicate(timeout=60)[0] for process in started]
    assert [process.returncode for process in started] == [PREEMPTED, PREEMPTED], printed
    saved = [line for line in printed[0].splitlines() if "asked to stop: saved after step" in line]
    assert len(saved) == 1
    step = saved[0].split()[-1]
    assert (run.work / "checkpoints" / step / "manifest.json").exists()
    printed = run.finish(2)
    assert f"going on from the checkpoint after step {step} of {STEPS}" in printed[0]
    assert run.content() == together[0].content()
    assert run.metrics() == together[0].metrics()


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_lost_process_ends_the_other_and_both_go_on(
    victim: int, together: tuple[Run, list[str]], inputs: Path, world: Path, tmp_path: Path
) -> None:
    run = Run(inputs, world, tmp_path)
    started = run.start(2)
    run.wait_for_checkpoint(started)
    started[victim].kill()
    before = time.monotonic()
    printed = [process.communicate(timeout=60)[0] for process in started]
    assert started[1 - victim].returncode == PREEMPTED, printed
    assert "preempted: another process of this job is lost" in printed[1 - victim]
    # Process 0 holds the sockets of all; the loss of another shows when its heartbeats stay away.
    assert time.monotonic() - before < (10 if victim == 0 else 2 * distributed.HEARTBEAT_SECONDS)
    printed = run.finish(2)
    assert "going on from the checkpoint after step" in printed[0]
    assert run.content() == together[0].content()
    assert run.metrics() == together[0].metrics()


SEPARATE = """
import sys
from nanocode_core.errors import UserError
from nanocode_core.store import Files
from nanocode_core.training import distributed

distributed.join()
with distributed.company():
    try:
        distributed.require_shared(Files(sys.argv[1]))
    except UserError as error:
        print("refused:", error)
    assert distributed.share(lambda: {"from": distributed.processes().index}) == {"from": 0}
    distributed.require_shared(Files(sys.argv[2]))
print("fine")
"""


def test_processes_that_do_not_share_their_directory_are_refused(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    started = start([["-c", SEPARATE, str(tmp_path / f"{index}"), str(tmp_path / "both")] for index in range(2)])
    printed = [process.communicate(timeout=100)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], printed
    for index in range(2):
        assert f"refused: {tmp_path / str(index)} is not the same directory for all processes" in printed[index]
        assert "fine" in printed[index].splitlines()
    assert not list((tmp_path / "both").iterdir())


def test_the_environment_says_who_a_process_is(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_COUNT", "JAX_PROCESS_ID")

    def found(*values: str | None) -> distributed.Processes:
        for name, value in zip(names, values, strict=True):
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        return distributed.processes()

    assert found(None, None, None, None) == distributed.Processes(0, 1)
    assert found("host:1", "1", None, None) == distributed.Processes(0, 1)
    assert found("host:1", "4", None, "3") == distributed.Processes(3, 4)
    assert found("host:1", None, "2", "0").primary
    assert not found("host:1", None, "2", "1").primary
    for wrong in ((None, "2", None, "0"), ("host:1", "2", None, None), ("host:1", "2", None, "2"), ("host:1", "x", None, "0")):  # fmt: skip  # noqa: E501
        with pytest.raises(UserError, match=r"needs JAX_COORDINATOR_ADDRESS .* JAX_NUM_PROCESSES and JAX_PROCESS_ID"):
            found(*wrong)


def test_the_exit_code_is_the_workers() -> None:
    assert distributed.PREEMPTED == PREEMPTED


def test_a_peer_that_stands_still_is_told_from_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "_joined", True)
    monkeypatch.setattr(distributed, "HEARTBEAT_SECONDS", 0.01)
    with pytest.raises(PeersLost, match="the other hosts of this job did not answer"), distributed.company():
        raise JaxRuntimeError("INTERNAL: Gloo context initialization failed: connect: DEADLINE_EXCEEDED")
    with pytest.raises(JaxRuntimeError), distributed.company():
        raise JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
