import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from nanocode_core.config import load_config
from nanocode_core.errors import UserError
from nanocode_core.jobs.launcher import JobFailed, JobPreempted
from nanocode_core.jobs.local import LocalLauncher
from nanocode_core.jobs.spec import JobSpec
from nanocode_core.jobs.stage import Stage, plan
from nanocode_core.store import Store


@pytest.fixture(autouse=True)
def _toys_on_path(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def toy(function, name="toy", inputs=(), version=1):
    return Stage(name=name, version=version, build=f"toy_stages:{function}", inputs=inputs, identity=("seed",))


def settings(tmp_path, *sets):
    return load_config("demo", [f"run.store={tmp_path / 'store'}", f"run.cache={tmp_path / 'cache'}", *sets])


def launch(stage, config, lines=None):
    store = Store(config.run.store)
    planned = plan([stage], config, store)[stage.name]
    LocalLauncher().run(JobSpec.of(planned, config), (lines if lines is not None else []).append)
    return store.open(stage.name, planned.fingerprint)


def test_a_job_builds_an_artifact_with_its_record(tmp_path):
    lines = []
    artifact = launch(toy("write"), settings(tmp_path, "seed=7"), lines)
    assert (artifact.path / "value.txt").read_text() == "7"
    assert artifact.record.metrics == {"length": 1}
    assert artifact.record.config == {"seed": 7}
    assert artifact.record.provenance["starts"] == 1
    assert "toy: written" in lines
    assert not list((tmp_path / "store" / "work").rglob("*.txt"))


def test_fingerprints_follow_identity_version_and_inputs_only(tmp_path):
    first, second = toy("write", "first"), toy("write", "second", inputs=("first",))
    config = settings(tmp_path)
    store = Store(config.run.store)

    def keys(config, first=first, second=second):
        return [p.fingerprint for p in plan([first, second], config, store).values()]

    base = keys(config)
    assert keys(settings(tmp_path, "corpus.workers=5", "checkpoints.steps=3", "soul=x.md")) == base
    assert not set(keys(settings(tmp_path, "seed=1"))) & set(base)
    changed = keys(config, first=toy("write", "first", version=2))
    assert changed[0] != base[0]
    assert changed[1] != base[1]


def test_a_stage_reads_its_inputs_and_is_planned_as_reused_afterwards(tmp_path):
    first, second = toy("write", "first"), toy("write", "second", inputs=("first",))
    config = settings(tmp_path, "seed=3")
    store = Store(config.run.store)
    planned = plan([first, second], config, store)
    assert [p.record for p in planned.values()] == [None, None]
    for p in planned.values():
        LocalLauncher().run(JobSpec.of(p, config), print)
    again = plan([first, second], config, Store(config.run.store))
    assert all(p.record is not None for p in again.values())
    value = store.open("second", planned["second"].fingerprint).path / "value.txt"
    assert value.read_text() == "3+3"


@pytest.mark.parametrize(
    ("function", "error", "said"),
    [
        ("refuse", UserError, "no file matches"),
        ("lose_the_store", UserError, "could not read x"),
        ("crash", JobFailed, "exit code 42"),
        ("die", JobFailed, "signal 9"),
    ],
)
def test_failures_are_told_apart_and_leave_no_artifact(tmp_path, function, error, said):
    config = settings(tmp_path)
    lines = []
    with pytest.raises(error, match=said):
        launch(toy(function), config, lines)
    assert Store(config.run.store).records() == []
    if function == "refuse":
        assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file() and path.name != ".lock"]
    if function == "crash":
        assert any("ZeroDivisionError" in line for line in lines)


def test_killed_at_random_moments_it_goes_on_and_ends_the_same(tmp_path):
    stage = toy("count")
    undisturbed = launch(stage, settings(tmp_path / "a"))
    config = settings(tmp_path / "b")
    planned = plan([stage], config, Store(config.run.store))["toy"]
    spec = tmp_path / "spec.json"
    spec.write_text(JobSpec.of(planned, config).model_dump_json())
    rng = random.Random(0)
    starts = []
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-m", "nanocode_core.jobs.worker", str(spec)], stdout=subprocess.PIPE, text=True
        )
        for line in process.stdout:
            if "from " in line:
                starts.append(int(line.split()[-1]))
                break
        time.sleep(rng.uniform(0.2, 0.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
    artifact = launch(stage, config)
    assert starts[0] == 0
    assert starts == sorted(starts)
    assert starts[-1] > 0
    assert artifact.record.digest == undisturbed.record.digest
    assert artifact.record.provenance["starts"] == 4
    steps = [json.loads(line)["step"] for line in (artifact.path / "logs/metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 41))


def test_two_runs_at_once_build_once(tmp_path):
    config = settings(tmp_path)
    lines = ([], [])
    threads = [threading.Thread(target=launch, args=(toy("count"), config, lines[i])) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    said = "\n".join(lines[0] + lines[1])
    assert said.count("toy: from 0") == 1
    assert "toy: waiting for" in said
    assert "built by another run meanwhile, reused" in said


def test_a_job_ends_with_its_launcher_children_included(tmp_path):
    config = settings(tmp_path)
    planned = plan([toy("sleep_with_child")], config, Store(config.run.store))["toy"]
    spec = tmp_path / "spec.json"
    spec.write_text(JobSpec.of(planned, config).model_dump_json())
    script = (
        "from pathlib import Path\n"
        "from nanocode_core.jobs.local import LocalLauncher\n"
        "from nanocode_core.jobs.spec import JobSpec\n"
        f"spec = JobSpec.model_validate_json(Path({str(spec)!r}).read_text())\n"
        "LocalLauncher().run(spec, lambda line: print(line, flush=True))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    pids = next(list(map(int, line.split()[-2:])) for line in parent.stdout if "pids" in line)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids)


def test_cancel_is_preemption_and_leaves_nothing_running(tmp_path):
    config = settings(tmp_path)
    planned = plan([toy("sleep_with_child")], config, Store(config.run.store))["toy"]
    launcher = LocalLauncher()
    pids = []

    def line(text):
        if "pids" in text:
            pids.extend(map(int, text.split()[-2:]))
            threading.Thread(target=launcher.cancel).start()

    with pytest.raises(JobPreempted):
        launcher.run(JobSpec.of(planned, config), line)
    assert len(pids) == 2
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids)


def test_a_full_disk_is_one_line_and_leaves_no_artifact(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        config = load_config("demo", [f"run.store={disk / 'store'}", f"run.cache={tmp_path / 'cache'}"])
        with pytest.raises(UserError, match="disk is full") as caught:
            launch(toy("fill"), config)
        assert "\n" not in str(caught.value)
        assert Store(config.run.store).records() == []
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_progress_is_rate_limited_and_always_shows_the_end(capsys, tmp_path):
    from nanocode_core.jobs.job import Job

    job = Job("toy", "0" * 16, load_config("demo"), {}, tmp_path, tmp_path, None)
    for done in range(1, 1001):
        job.progress(done, 1000, "steps", "loss 1.0")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[-1].startswith("toy: 1000/1000 steps (100%)")


def test_metrics_lines_beyond_a_resume_are_dropped_and_a_cut_one_too(tmp_path):
    from nanocode_core.jobs.job import Job

    job = Job("toy", "0" * 16, load_config("demo"), {}, tmp_path, tmp_path, None)
    for step in range(5):
        job.metric(step=step, loss=1.0)
    with job.metrics_path.open("a") as file:
        file.write('{"step": 5, "lo')
    job.rewind_metrics(2)
    assert [json.loads(line)["step"] for line in job.metrics_path.read_text().splitlines()] == [0, 1, 2]
    assert os.listdir(job.metrics_path.parent) == ["metrics.jsonl"]


def test_metrics_are_cut_where_they_were_at_a_save(tmp_path):
    from nanocode_core.jobs.job import Job

    job = Job("toy", "0" * 16, load_config("demo"), {}, tmp_path, tmp_path, None)
    assert job.metrics_bytes() == 0
    job.metric(step=1, loss=1.0)
    size = job.metrics_bytes()
    # Of the same step, but after the save: a resume writes it once more.
    job.metric(step=1, after=1.0)
    job.metric(step=2, loss=1.0)
    job.rewind_metrics(1, size)
    assert [set(json.loads(line)) for line in job.metrics_path.read_text().splitlines()] == [{"time", "step", "loss"}]
    job.rewind_metrics(1, size + 1000)  # shorter than it was: then by step
    assert job.metrics_bytes() == size


def test_of_several_processes_the_first_one_talks(tmp_path, capsys):
    from nanocode_core.jobs.job import Job

    job = Job("toy", "0" * 16, load_config("demo"), {}, tmp_path, tmp_path, None, primary=False)
    job.log("hello")
    job.metric(step=1, loss=1.0)
    job.progress(1, 1, "steps")
    job.rewind_metrics(0)
    assert capsys.readouterr().out == ""
    assert not job.metrics_path.exists()
