"""What decides which artifact: the real stages, planned under changed settings."""

from pathlib import Path

import pytest

from nanocode_core.config import PROJECT, load_config
from nanocode_core.jobs.stage import plan
from nanocode_core.store import Store
from tasks import STAGES


def fingerprints(tmp_path, *sets, preset="demo"):
    config = load_config(preset, [f"run.store={tmp_path / 'store'}", *sets])
    return {name: planned.fingerprint for name, planned in plan(STAGES, config, Store(config.run.store)).items()}


def rebuilt(tmp_path, *sets):
    before, after = fingerprints(tmp_path), fingerprints(tmp_path, *sets)
    return [name for name in before if before[name] != after[name]]


def test_every_stage_comes_after_its_inputs():
    seen = set()
    for stage in STAGES:
        assert set(stage.inputs) <= seen
        seen.add(stage.name)


def test_one_line_of_the_soul_rebuilds_synthetic_and_what_follows(tmp_path):
    text = (PROJECT / "SOUL.md").read_text()
    changed = tmp_path / "SOUL.md"
    changed.write_text(text.replace("a bit goofy", "a bit dry"))
    assert changed.read_text() != text
    assert rebuilt(tmp_path, f"soul={changed}") == ["synthetic", "sft", "dpo", "eval", "report"]


def test_the_same_soul_in_another_place_rebuilds_nothing(tmp_path):
    copy = tmp_path / "elsewhere.md"
    copy.write_bytes((PROJECT / "SOUL.md").read_bytes())
    assert rebuilt(tmp_path, f"soul={copy}") == []


@pytest.mark.parametrize(
    "change",
    [
        "corpus.workers=1",
        "run.store=another",
        "run.lease_seconds=9",
        "run.launcher=local",
        "run.cache=another",
        "checkpoints.minutes=3",
        "checkpoints.steps=7",
        "checkpoints.keep=5",
        "synthetic.concurrency=2",
        "synthetic.base_url=http://127.0.0.1:1/v1",
        "training.validate_every=7",
        "training.micro_sequences=2",
    ],
)
def test_how_it_is_computed_rebuilds_nothing(tmp_path, change):
    assert rebuilt(tmp_path, change) == []


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ("corpus.code_share=0.3", "corpus"),
        ("tokenizer.vocabulary=2048", "tokenizer"),
        ("model.sequence=256", "tokens"),
        ("model.depth=2", "pretrain"),
        ("training.tokens=1000", "pretrain"),
        ("synthetic.rollouts=10", "synthetic"),
        ("sft.epochs=1", "sft"),
        ("dpo.loss=sigmoid", "dpo"),
        ("eval.tasks=5", "eval"),
    ],
)
def test_a_change_rebuilds_from_the_stage_it_decides(tmp_path, change, first):
    names = [stage.name for stage in STAGES]
    changed = rebuilt(tmp_path, change)
    assert changed[0] == first
    assert changed[-1] == "report"
    assert changed == [name for name in names if name in changed]


def test_planning_leaves_the_store_untouched(tmp_path):
    fingerprints(tmp_path)
    assert not Path(tmp_path, "store").exists()
