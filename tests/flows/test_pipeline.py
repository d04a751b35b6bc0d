import os
import shutil
import sys
import typing
from pathlib import Path

import pytest
from flow_toys import toys

from flows import pipeline
from flows.pipeline import headline, prepare, run_plainly, summarize
from nanocode_core.config import PRESETS, load_config
from nanocode_core.errors import UserError
from nanocode_core.jobs.launcher import JobFailed
from tasks import STAGES


@pytest.fixture(autouse=True)
def _toys(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setattr(pipeline, "STAGES", toys())


def settings(tmp_path, *sets):
    return load_config("smoke", [f"run.store={tmp_path / 'store'}", f"run.cache={tmp_path / 'cache'}", *sets])


def run(config, stages=None, newest=False):
    lines = []
    schedule = prepare(config, stages, newest)
    outcomes = run_plainly(schedule, lines.append, lambda outcome: None)
    return {outcome.stage: outcome for outcome in outcomes}, lines, schedule


def test_a_second_run_reuses_every_stage(tmp_path):
    first, lines, _ = run(settings(tmp_path))
    assert list(first) == ["corpus", "synthetic", "dpo", "eval", "report"]
    assert not any(outcome.reused for outcome in first.values())
    assert any(line.startswith("corpus: 2/2 parts (100%") for line in lines)
    second, lines, _ = run(settings(tmp_path))
    assert all(outcome.reused for outcome in second.values())
    assert lines == []
    assert {k: v.digest for k, v in first.items()} == {k: v.digest for k, v in second.items()}


def test_only_what_depends_on_a_changed_field_is_built_again(tmp_path):
    run(settings(tmp_path))
    outcomes, _, _ = run(settings(tmp_path, "synthetic.rollouts=7"))
    assert [name for name, outcome in outcomes.items() if outcome.reused] == ["corpus"]
    outcomes, _, _ = run(settings(tmp_path, "synthetic.concurrency=3", "checkpoints.minutes=3"))
    assert all(outcome.reused for outcome in outcomes.values())


def test_one_stage_runs_alone_and_looks_its_inputs_up(tmp_path):
    outcomes, _, schedule = run(settings(tmp_path), ["synthetic"])
    assert list(outcomes) == ["synthetic"]
    assert list(schedule.planned) == ["synthetic"]
    run(settings(tmp_path), ["corpus"])
    outcomes, _, _ = run(settings(tmp_path), ["dpo"])
    assert list(outcomes) == ["dpo"]
    assert not outcomes["dpo"].reused


def test_an_input_that_is_not_built_is_named_with_the_remedy(tmp_path):
    run(settings(tmp_path), ["synthetic"])
    with pytest.raises(UserError, match=r"stage eval needs dpo [0-9a-f]{16}.*--stages corpus,dpo,eval "):
        prepare(settings(tmp_path), ["eval"])
    assert [path.name for path in (tmp_path / "store" / "artifacts").iterdir()] == ["synthetic"]


def test_a_built_stage_needs_no_inputs(tmp_path):
    _, _, schedule = run(settings(tmp_path))
    shutil.rmtree(tmp_path / "store" / "artifacts" / "corpus")
    outcomes, _, _ = run(settings(tmp_path), ["dpo"])
    assert outcomes["dpo"].reused
    assert outcomes["dpo"].fingerprint == schedule.planned["dpo"].fingerprint


@pytest.mark.parametrize(("stages", "message"), [(["corpsu"], "unknown stage 'corpsu'; choose from"), ([], "empty")])
def test_a_wrong_list_of_stages_is_refused(tmp_path, stages, message):
    with pytest.raises(UserError, match=message):
        prepare(settings(tmp_path), stages)
    assert not (tmp_path / "store" / "artifacts").exists()


def test_newest_evaluates_the_last_model_with_its_own_settings(tmp_path):
    with pytest.raises(UserError, match="no dpo artifact"):
        prepare(settings(tmp_path), newest=True)
    run(settings(tmp_path, "seed=1", "dpo.beta=0.3"), ["corpus", "synthetic", "dpo"])
    run(settings(tmp_path, "seed=2", "dpo.beta=0.7"), ["corpus", "synthetic", "dpo"])
    outcomes, _, schedule = run(settings(tmp_path, "seed=5"), newest=True)
    assert list(outcomes) == ["eval"]
    assert (schedule.config.seed, schedule.config.dpo.beta) == (2, 0.7)
    again, _, _ = run(settings(tmp_path, "seed=2", "dpo.beta=0.7"), ["eval"])
    assert again["eval"].reused
    assert again["eval"].fingerprint == outcomes["eval"].fingerprint


def test_a_corrupted_file_of_a_reused_artifact_is_named(tmp_path):
    run(settings(tmp_path))
    for file in (tmp_path / "store" / "artifacts" / "corpus").rglob("value.txt"):
        file.chmod(0o644)
        file.write_text("x")
    with pytest.raises(UserError, match=r"value\.txt"):
        run(settings(tmp_path))


@pytest.mark.parametrize(("build", "error"), [("refuse", UserError), ("crash", JobFailed)])
def test_a_failed_stage_ends_the_run_and_keeps_what_came_before(tmp_path, monkeypatch, build, error):
    monkeypatch.setattr(pipeline, "STAGES", toys(dpo=build))
    with pytest.raises(error):
        run(settings(tmp_path))
    built = {path.name for path in (tmp_path / "store" / "artifacts").iterdir()}
    assert built == {"corpus", "synthetic"}


def test_a_preempted_job_is_started_again(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "STAGES", toys(corpus="once_preempted"))
    monkeypatch.setattr(pipeline.time, "sleep", lambda seconds: None)
    outcomes, lines, _ = run(settings(tmp_path), ["corpus"])
    assert not outcomes["corpus"].reused
    assert any("starting it again" in line for line in lines)


def test_the_summary_says_where_the_report_is(tmp_path):
    outcomes, _, schedule = run(settings(tmp_path))
    summary = summarize(schedule, outcomes.values(), 90.0)
    assert summary["minutes"] == 1.5
    assert summary["stages"]["corpus"]["state"] == "built"
    assert Path(summary["report"]).read_text() == "<p>done</p>"
    assert summarize(schedule, [outcomes["corpus"]], 1.0)["report"] is None


def test_headline_takes_the_first_plain_metrics():
    metrics = {"loss": 3.14159265, "tokens": 12, "table": {"a": 1}, "kind": "ipo", "more": 1}
    assert headline(metrics) == "loss 3.142, tokens 12, kind ipo"


def test_the_stages_stand_after_their_inputs_and_read_fields_that_exist():
    config = load_config("demo")
    seen = set()
    for stage in STAGES:
        assert set(stage.inputs) <= seen
        seen.add(stage.name)
        config.pick(*stage.identity)


def test_the_form_offers_every_preset_and_every_stage():
    from flows.nanocode import Preset, StageName

    assert typing.get_args(Preset) == tuple(PRESETS)
    assert typing.get_args(StageName) == tuple(stage.name for stage in STAGES)
