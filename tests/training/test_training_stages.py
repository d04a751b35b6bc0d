"""The three stages one after the other on a small world, and the same under kill -9."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import training_world

from nanocode_core.jobs.job import Job

STAGES = ("pretrain", "sft", "dpo")


def content(out: Path) -> dict[str, str]:
    """sha256 of every file outside logs/."""
    files = sorted(p for p in out.rglob("*") if p.is_file() and "logs" not in p.relative_to(out).parts)
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="session")
def built(world: Path) -> dict[str, tuple[Job, dict[str, Any]]]:
    """Every stage built once, undisturbed; its artifact lies in the world under the stage's name."""
    done = {}
    for stage in STAGES:
        job = training_world.make_job(stage, world, world / f"{stage}-undisturbed", training_world.world_config(world))
        headline = training_world.build(stage, job)
        shutil.copytree(job.out, world / stage)
        done[stage] = (job, headline)
    return done


def saves(work: Path) -> set[str]:
    """What has been saved in a work directory by now: measurements and checkpoints, half-written ones too."""
    return {
        str(path) for pattern in ("*", "checkpoints/*", "checkpoints/*/manifest.json") for path in work.glob(pattern)
    }


def evaluation(job: Job) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((job.out / "evaluation.json").read_text())
    return value


def metrics(job: Job) -> list[dict[str, Any]]:
    return [json.loads(line) for line in job.metrics_path.read_text().splitlines()]


def test_pretraining_learns_and_reports(built: dict[str, tuple[Job, dict[str, Any]]]) -> None:
    job, headline = built["pretrain"]
    measured = evaluation(job)["bits_per_byte"]
    for source in ("code", "prose"):
        assert measured["after"][source] < 0.7 * measured["before"][source]
        assert headline[f"bpb_{source}"] == pytest.approx(measured["after"][source], abs=1e-3)
    assert headline["tokens"] == 60 * 8 * 64
    assert headline["tokens_per_second"] > 0
    assert [line["step"] for line in metrics(job) if "bpb_code" in line] == [20, 40, 60]
    assert [line["step"] for line in metrics(job) if "samples" in line] == [30]
    assert len(json.loads((job.out / "samples.json").read_text())) == 5


def test_fine_tuning_learns_the_rollouts(built: dict[str, tuple[Job, dict[str, Any]]]) -> None:
    measured = evaluation(built["sft"][0])["rollout_bits_per_byte"]
    assert measured["after"] < 0.8 * measured["before"]


def test_preferences_are_learned(built: dict[str, tuple[Job, dict[str, Any]]]) -> None:
    job, headline = built["dpo"]
    measured = evaluation(job)
    assert measured["after"]["pair_margin"] > measured["before"]["pair_margin"]
    assert headline["pair_accuracy"] == 1.0
    first = metrics(job)[0]
    # Before the first step the policy is the reference: no margin, and the IPO loss is (1 / (2 beta))^2.
    assert first["margin"] == pytest.approx(0, abs=1e-3)
    assert first["loss"] == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("stage", STAGES)
def test_a_start_after_the_end_only_repeats_the_end(
    stage: str, built: dict[str, tuple[Job, dict[str, Any]]], world: Path
) -> None:
    """Killed between the last checkpoint and publishing: the next start finds everything done."""
    job, _ = built[stage]
    before, lines = content(job.out), metrics(job)
    again = training_world.make_job(stage, world, job.work, job.config)
    training_world.build(stage, again)
    assert content(again.out) == before
    assert max(line["step"] for line in metrics(again)) == max(line["step"] for line in lines)


@pytest.mark.parametrize("stage", ["pretrain", "dpo"])
def test_killed_at_random_moments_it_ends_with_the_same_bytes(
    stage: str, built: dict[str, tuple[Job, dict[str, Any]]], world: Path
) -> None:
    chance = random.Random(stage)
    work = world / f"{stage}-work"
    command = [sys.executable, training_world.__file__, stage, str(world)]
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
        # Wait until some further files or checkpoints (whole ones or half-written) have come, and a moment longer.
        known, left = saves(work), chance.randint(1, 12)
        while left > 0 and process.poll() is None:
            time.sleep(0.001)
            left -= len(saves(work) - known)
            known |= saves(work)
        time.sleep(chance.uniform(0, 0.05))
        assert process.poll() is None, "it was over before the kill: " + process.communicate()[0].decode()
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    finished = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "going on from the checkpoint after step" in finished.stdout
    assert content(work / "out") == content(built[stage][0].out)
    # Metrics lines of repeated steps are not doubled, and none is cut short.
    steps = [line["step"] for line in map(json.loads, (work / "out/logs/metrics.jsonl").read_text().splitlines())]
    assert steps == sorted(steps)
