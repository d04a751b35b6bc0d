"""A corpus job on disk, and a hub to get it from."""

import pytest
from corpus_hub_server import Hub

from nanocode_core.config import load_config
from nanocode_core.corpus.build import build
from nanocode_core.jobs.job import Job


@pytest.fixture
def corpus(tmp_path):
    """corpus(corpus_section, name="job", seed=0) builds; returns (metrics, out folder)."""

    def run(section, name="job", seed=0):
        section = {"workers": 1, "validation_characters": 2_000, **section}
        overrides = {"seed": seed, "corpus": section, "run": {"cache": str(tmp_path / "cache")}}
        work = tmp_path / name
        (work / "out").mkdir(parents=True, exist_ok=True)
        job = Job("corpus", "0" * 16, load_config("demo", overrides=overrides), {}, work, work / "out", None)
        return build(job), work / "out"

    return run


@pytest.fixture
def serve(monkeypatch):
    """serve(repo, {path: bytes}) -> Hub; HF_ENDPOINT points at it until the test ends."""
    hubs = []

    def start(repo, files):
        hub = Hub(repo, files)
        hubs.append(hub)
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        return hub

    yield start
    for hub in hubs:
        hub.close()
