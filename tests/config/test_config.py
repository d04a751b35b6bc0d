import contextlib
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanocode_core.config import PRESETS, Execution, Identity, Overrides, Section, config_from_identity, load_config
from nanocode_core.errors import UserError


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_loads_and_survives_json(preset):
    config = load_config(preset)
    assert type(config).model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("preset", "shape"),
    [
        ("d3", (3, 192, 2, 256, 8_000)),
        ("d6", (6, 384, 3, 512, 32_768)),
        ("d12", (12, 768, 3, 1_024, 32_768)),
        ("d20", (20, 1_280, 5, 2_048, 32_768)),
        ("d24", (24, 2_048, 8, 4_096, 32_768)),
    ],
)
def test_presets_have_the_originals_shapes(preset, shape):
    config = load_config(preset)
    model = config.model
    assert (model.depth, model.width, model.heads, model.sequence, config.tokenizer.vocabulary) == shape
    assert config.corpus.code_share == 0.2


def test_set_reaches_any_depth_and_type():
    config = load_config(
        "demo",
        [
            "training.steps=50",
            "training.optimizer.matrix_lr=0.01",
            "synthetic.teacher=some/model",
            "model.kv_heads=null",
            'tokenizer.compare=["a.json", "b.json"]',
        ],
    )
    assert config.training.steps == 50
    assert config.training.optimizer.matrix_lr == 0.01
    assert config.synthetic.teacher == "some/model"
    assert config.model.kv_heads is None
    assert config.tokenizer.compare == ("a.json", "b.json")


def test_set_wins_over_overrides_which_win_over_the_preset():
    config = load_config("smoke", ["training.steps=9"], {"training": {"steps": 8, "batch_sequences": 7}})
    assert (config.training.steps, config.training.batch_sequences) == (9, 7)


@pytest.mark.parametrize(
    ("preset", "sets", "said"),
    [
        ("dmeo", [], "'demo'"),
        ("demo", ["training.stepz=5"], "'training.steps'"),
        ("demo", ["trainin.steps=5"], "unknown field"),
        ("demo", ["training.steps=soon"], "training.steps"),
        ("demo", ["training.steps=-1"], "training.steps"),
        ("demo", ["training.steps"], "no '='"),
        ("demo", ["training.steps.more=1"], "training.steps"),
        ("demo", ["model.width=7"], "width"),
        ("demo", ['corpus.sources=[{"kind": "ftp", "name": "x", "content": "code"}]'], "corpus.sources"),
    ],
)
def test_bad_input_is_one_line_that_names_the_field(preset, sets, said):
    with pytest.raises(UserError) as caught:
        load_config(preset, sets)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_override_is_named():
    with pytest.raises(UserError, match=r"training\.stepz"):
        load_config("demo", overrides={"training": {"stepz": 1}})


@given(st.text(max_size=40))
def test_any_set_text_loads_or_is_refused(text):
    with contextlib.suppress(UserError):
        load_config("demo", [text])


def test_execution_fields_never_reach_the_identity():
    base = load_config("demo")
    how = ("run.store=elsewhere", "corpus.workers=7", "checkpoints.minutes=1", "soul=x.md", "synthetic.concurrency=3")
    other = load_config("demo", how)
    assert other != base
    assert other.identity() == base.identity()


def test_identity_fields_do():
    base = load_config("demo")
    for change in ("seed=1", "model.depth=2", "sft.epochs=9", "corpus.code_share=0.5", "synthetic.teacher=x"):
        assert load_config("demo", [change]).identity() != base.identity(), change


def test_a_field_without_a_marker_does_not_import():
    with pytest.raises(TypeError, match="loose"):

        class Wrong(Section):
            loose: int = 1

    class Right(Section):
        told: Identity[int] = 1
        apart: Execution[int] = 2

    assert Right().identity() == {"told": 1}


def test_pick_is_flat_and_refuses_what_is_not_there():
    config = load_config("demo")
    picked = config.pick("model", "seed")
    assert picked["model.depth"] == config.model.depth
    assert picked["seed"] == config.seed
    with pytest.raises(KeyError):
        config.pick("model.dpeth")


def test_config_comes_back_from_a_records_identity():
    config = load_config("demo", ["model.depth=6", "sft.epochs=9"])
    again = config_from_identity({**config.pick("model", "sft")}, load_config("demo"))
    assert again.model == config.model
    assert again.sft == config.sft


def test_the_form_has_every_field_and_may_be_left_empty():
    schema = Overrides.model_json_schema()
    assert "required" not in schema
    assert set(schema["properties"]) == set(type(load_config("demo")).model_fields)
    assert Overrides.model_validate({"training": {"steps": 5}}).model_dump(exclude_unset=True) == {
        "training": {"steps": 5}
    }


def test_importing_the_core_imports_no_jax():
    script = (
        "import sys, nanocode_core.jobs.stage, nanocode_core.jobs.local, tasks, cli.main\n"
        "assert not {'jax', 'prefect', 'flax'} & set(sys.modules), sorted(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_settings_from_the_environment_are_judged_like_others(monkeypatch):
    for text, spot in (("", True), ("no", False), ("FALSE", False), ("true", True)):
        monkeypatch.setenv("NANOCODE_SPOT", text)
        assert load_config("smoke").gke.spot is spot
    monkeypatch.setenv("NANOCODE_SPOT", "sometimes")
    with pytest.raises(UserError, match=r"gke.spot: .* \(got 'sometimes'\)"):
        load_config("smoke")
