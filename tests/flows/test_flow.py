import os
import sys
from pathlib import Path

import pytest
from flow_toys import toys
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.testing.utilities import prefect_test_harness

from flows import pipeline
from flows.nanocode import nanocode


@pytest.fixture(scope="module", autouse=True)
def _server():
    with (
        prefect_test_harness(server_startup_timeout=120),
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
    ):
        yield


@pytest.fixture(autouse=True)
def _toys(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("NANOCODE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pipeline, "STAGES", toys())


def run(tmp_path, **parameters):
    """The final state of a flow run, and the artifacts it made, by key."""
    state = nanocode(preset="smoke", store=str(tmp_path / "store"), return_state=True, **parameters)
    with get_client(sync_client=True) as client:
        chosen = FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
        made = {artifact.key: artifact for artifact in client.read_artifacts(flow_run_filter=chosen)}
    return state, made


def test_a_run_shows_its_stages_and_its_report(tmp_path):
    state, made = run(tmp_path)
    summary = state.result()
    assert state.is_completed()
    assert {stage["state"] for stage in summary["stages"].values()} == {"built"}
    assert {"stages", "evaluation", "report", "report-text", "progress-corpus"} <= set(made)
    assert summary["stages"]["eval"]["fingerprint"] in made["stages"].data
    assert made["progress-corpus"].data == 100
    assert made["report-text"].data == "done"
    state, _ = run(tmp_path)
    assert {stage["state"] for stage in state.result()["stages"].values()} == {"reused"}


def test_the_form_changes_single_settings(tmp_path):
    from nanocode_core.config import Overrides

    run(tmp_path, stages=["corpus"])
    state, _ = run(tmp_path, stages=["corpus"], overrides=Overrides.model_validate({"sft": {"epochs": 2.0}}))
    assert state.result()["stages"]["corpus"]["state"] == "reused"
    state, _ = run(tmp_path, stages=["corpus"], overrides=Overrides.model_validate({"seed": 4}))
    assert state.result()["stages"]["corpus"]["state"] == "built"
    again, _ = run(tmp_path, stages=["corpus"], set=["seed=4"])
    assert again.result()["stages"] == {
        "corpus": {**state.result()["stages"]["corpus"], "state": "reused"},
    }


def test_bad_input_fails_with_its_one_line_and_no_retry(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(pipeline, "STAGES", toys(corpus="refuse"))
    state, _ = run(tmp_path)
    assert (state.type.value, state.name) == ("FAILED", "BadInput")
    assert state.message == "corpus.sources: no file matches 'x'; give another glob"
    assert "Traceback" not in caplog.text
    state, _ = run(tmp_path, set=["training.stesp=4"])
    assert (state.name, state.message.split(";")[0]) == (
        "BadInput",
        "unknown field 'training.stesp' (did you mean 'training.steps'?)",
    )


def test_a_preempted_stage_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "STAGES", toys(corpus="once_preempted"))
    state, _ = run(tmp_path, stages=["corpus"])
    assert state.result()["stages"]["corpus"]["state"] == "built"
