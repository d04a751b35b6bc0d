import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

HERE = Path(__file__).parent


def command(tmp_path, *args, builds=()):
    sets = [f"run.store={tmp_path / 'store'}", f"run.cache={tmp_path / 'cache'}", "run.lease_seconds=4"]
    flags = [part for item in sets for part in ("--set", item)]
    return [sys.executable, str(HERE / "toy_speedrun.py"), *builds, "--", "--preset", "smoke", *flags, *args]


def environment(tmp_path):
    env = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    return {**env, "PREFECT_HOME": str(tmp_path / "prefect"), "PYTHONPATH": os.pathsep.join(sys.path)}


def speedrun(tmp_path, *args, builds=()):
    return subprocess.run(
        command(tmp_path, *args, builds=builds), env=environment(tmp_path), capture_output=True, text=True, timeout=200
    )


def processes_of(tmp_path):
    """Live processes whose command line or environment names this test's directory."""
    found = []
    for process in psutil.process_iter():
        try:
            told = " ".join(process.cmdline()) + process.environ().get("PREFECT_HOME", "")
            if str(tmp_path) in told and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def gone(tmp_path, seconds=20):
    end = time.monotonic() + seconds
    while processes_of(tmp_path):
        if time.monotonic() > end:
            return [process.cmdline() for process in processes_of(tmp_path)]
        time.sleep(0.1)
    return []


def task_runs(tmp_path):
    import sqlite3

    with sqlite3.connect(tmp_path / "prefect" / "prefect.db") as database:
        return database.execute("select name, state_name from task_run order by created").fetchall()


def test_two_runs_from_an_empty_machine(tmp_path):
    first = speedrun(tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "corpus: 2/2 parts (100%" in first.stdout
    summary = json.loads(first.stdout.splitlines()[-1])
    assert [stage["state"] for stage in summary["stages"].values()] == ["built"] * 5
    assert Path(summary["report"]).is_file()
    assert f"report: {summary['report']}" in first.stdout.splitlines()
    assert first.stdout.count("to build") == 5
    assert gone(tmp_path) == []
    assert sorted(task_runs(tmp_path)) == sorted(
        (name, "Completed") for name in ("corpus", "synthetic", "dpo", "eval", "report")
    )
    # The database is only history: without it, everything is still reused.
    for file in (tmp_path / "prefect").glob("prefect.db*"):
        file.unlink()
    second = speedrun(tmp_path)
    assert second.returncode == 0, second.stdout + second.stderr
    again = json.loads(second.stdout.splitlines()[-1])
    assert [stage["state"] for stage in again["stages"].values()] == ["reused"] * 5
    assert {state for _, state in task_runs(tmp_path)} == {"Reused"}
    assert gone(tmp_path) == []


@pytest.mark.slow
def test_a_broken_database_costs_the_record_only(tmp_path):
    (tmp_path / "prefect").mkdir()
    (tmp_path / "prefect" / "prefect.db").write_bytes(b"not a database" * 1000)
    result = speedrun(tmp_path, "--stages", "corpus")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "going on without its record" in result.stdout
    assert json.loads(result.stdout.splitlines()[-1])["stages"]["corpus"]["state"] == "built"
    assert gone(tmp_path) == []


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--preset", "dmeo"], "error: unknown preset 'dmeo' (did you mean 'demo'?)"),
        (["--set", "training.stesp=3"], "error: unknown field 'training.stesp'"),
        (["--stages", "dpo"], "error: stage dpo needs corpus"),
    ],
)
def test_bad_input_ends_before_anything_is_started(tmp_path, args, line):
    result = speedrun(tmp_path, *args)
    assert result.returncode == 2
    assert result.stderr.startswith(line)
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "store" / "artifacts").exists()
    assert not (tmp_path / "prefect" / "prefect.db").exists()


def test_a_stage_that_refuses_its_input_ends_the_run_with_its_line(tmp_path):
    result = speedrun(tmp_path, builds=["corpus=refuse"])
    assert result.returncode == 2
    assert result.stderr == "error: corpus.sources: no file matches 'x'; give another glob\n"
    assert "Traceback" not in result.stdout
    assert task_runs(tmp_path) == [("corpus", "BadInput")]


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_outlives_a_run_that_is_stopped(tmp_path, sign):
    run = subprocess.Popen(
        command(tmp_path, builds=["synthetic=slow"]), env=environment(tmp_path), stdout=subprocess.PIPE, text=True
    )
    for line in run.stdout:
        found = re.match(r"synthetic: pids (\d+) (\d+)", line)
        if found:
            break
    job = [int(pid) for pid in found.groups()]
    assert all(psutil.pid_exists(pid) for pid in job)
    run.send_signal(sign)
    code = run.wait(40)
    assert code != 0
    assert gone(tmp_path) == []
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in job)
    again = speedrun(tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    summary = json.loads(again.stdout.splitlines()[-1])
    assert [stage["state"] for stage in summary["stages"].values()] == ["reused", *["built"] * 4]


@pytest.mark.slow
def test_the_server_may_die_during_a_run(tmp_path):
    run = subprocess.Popen(
        command(tmp_path, builds=["synthetic=pause"]), env=environment(tmp_path), stdout=subprocess.PIPE, text=True
    )
    lines = []
    for line in run.stdout:
        lines.append(line)
        if line.startswith("synthetic: pausing"):
            for process in processes_of(tmp_path):
                if "uvicorn" in process.cmdline():
                    process.kill()
    assert run.wait(200) == 0
    assert [stage["state"] for stage in json.loads(lines[-1])["stages"].values()] == ["built"] * 5
    assert gone(tmp_path) == []
    assert [state for _, state in task_runs(tmp_path)] == ["Completed"] * 5
