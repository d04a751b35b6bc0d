"""The pipeline with a store on gs:// while requests fail: it completes, and the content comes out the same."""

from pathlib import Path

import pytest
from faults import PRINCIPAL, FaultProxy, Faults
from gcs import faulty  # noqa: F401 (fixture)

from flows.pipeline import prepare, run_plainly
from nanocode_core.config import load_config
from nanocode_core.errors import UserError
from nanocode_core.store import Files

KINDS = ("unavailable", "reset", "lost", "cut", "short", "stall")
SETTINGS = ["corpus.characters=300000", "run.mirror_seconds=1"]


def run(store: str, cache: Path, stages: list[str] | None, settings: list[str]) -> tuple[dict[str, str], list[str]]:
    """The digests of the stages, and what the jobs said. The report holds clock times."""
    config = load_config("smoke", [*settings, f"run.store={store}", f"run.cache={cache}"])
    lines: list[str] = []
    outcomes = run_plainly(prepare(config, stages), lines.append, lambda outcome: None)
    return {outcome.stage: outcome.digest for outcome in outcomes if outcome.stage != "report"}, lines


@pytest.mark.timeout(600)
def test_the_stages_of_the_data_come_through_faults(faulty: FaultProxy, tmp_path: Path) -> None:  # noqa: F811
    stages = ["corpus", "tokenizer", "tokens"]
    expected, _ = run(str(tmp_path / "store"), tmp_path / "a", stages, SETTINGS)
    # A hundred requests in all: with these shares 35 faults and more are to be expected.
    faulty.faults = Faults(unavailable=0.15, reset=0.1, lost=0.1, cut=0.1, short=0.1, stall=0.02, stalls=1)
    digests, lines = run(f"gs://bucket/{tmp_path.name}", tmp_path / "b", stages, SETTINGS)
    assert digests == expected, "\n".join(lines)
    assert sum(faulty.met[kind] for kind in KINDS) > 10
    assert not Files(f"gs://bucket/{tmp_path.name}").list("work")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_pipeline_comes_through_faults(faulty: FaultProxy, tmp_path: Path) -> None:  # noqa: F811
    settings = ["checkpoints.steps=1", "run.mirror_seconds=1"]
    expected, _ = run(str(tmp_path / "store"), tmp_path / "a", None, settings)
    faulty.faults = Faults(unavailable=0.05, reset=0.02, lost=0.02, cut=0.02, short=0.02, stall=0.01, stalls=2)
    digests, lines = run(f"gs://bucket/{tmp_path.name}", tmp_path / "b", None, settings)
    print(dict(faulty.met))
    assert digests == expected, "\n".join(lines)
    assert all(faulty.met[kind] for kind in KINDS), faulty.met


@pytest.mark.timeout(600)
def test_a_job_stops_with_one_line(faulty: FaultProxy, tmp_path: Path) -> None:  # noqa: F811
    """Where permission is missing, and where a shard that it needs is gone."""
    store = f"gs://bucket/{tmp_path.name}"
    faulty.refuse("POST .*/artifacts/corpus/")
    with pytest.raises(UserError) as caught:
        run(store, tmp_path / "a", ["corpus"], SETTINGS)
    said = f"{PRINCIPAL} has no permission to write object {tmp_path.name}/artifacts/corpus/"
    assert said in str(caught.value)
    assert "in bucket bucket" in str(caught.value)
    faulty.calm()
    run(store, tmp_path / "a", ["corpus"], SETTINGS)
    files = Files(store)
    files.delete(next(path for path in files.list("artifacts/corpus") if path.endswith(".parquet")))
    with pytest.raises(
        UserError, match=r"artifact corpus/\w+: \S+\.parquet is missing; run `nanocode artifacts rm"
    ) as caught:
        run(store, tmp_path / "b", ["tokenizer"], SETTINGS)
    assert "\n" not in str(caught.value)
