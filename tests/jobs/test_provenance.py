"""Where a result says that it came from."""

import subprocess
from pathlib import Path

import pytest

from nanocode_core.config import PROJECT
from nanocode_core.jobs.provenance import COMMIT, Stopwatch, provenance


def commit(tmp_path: Path) -> str | None:
    with Stopwatch(tmp_path / "clock.json") as watch:
        found: str | None = provenance(watch)["commit"]
    return found


def test_the_commit_is_that_of_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(COMMIT, raising=False)
    head = subprocess.run(["git", "-C", PROJECT, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    assert (commit(tmp_path) or "").rstrip("+") == head.stdout.strip()


def test_an_image_says_which_commit_it_was_built_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COMMIT, "0123456789ab")
    assert commit(tmp_path) == "0123456789ab"
    monkeypatch.setenv(COMMIT, "")  # built without saying
    assert commit(tmp_path) != ""
