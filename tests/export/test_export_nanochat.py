"""What an export holds: the model's arrays and its config, or a refusal; the same bytes each time."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer as Backend

from nanocode_core.errors import UserError
from nanocode_core.export import nanochat
from nanocode_core.export.directory import FILES, export_directory
from nanocode_core.model.gpt import GPT
from nanocode_core.model.shape import Shape
from nanocode_core.model.weights import named_arrays, save_model
from nanocode_core.tokenizer import Tokenizer

# What each of these decides is in config.json or, for the last two, in the arrays.
EXPRESSED = {
    *("depth", "width", "heads", "kv_heads", "mlp_ratio", "vocabulary", "sequence", "rope_theta", "softcap"),
    *("compute", "embedding_std", "up_init"),
}
REFUSED = {
    "value_embeddings": (True, "value embeddings"),
    "window_pattern": ("SL", "sliding windows"),
    "smear": (True, "smear"),
    "residual_scalars": (True, "residual scalars"),
    "backout": (True, "backout"),
    "qk_scale": (1.2, "a scale on queries and keys"),
}


def test_every_array_comes_back(model: GPT, exported: Path) -> None:
    found = load_file(exported / "model.safetensors")
    ours = named_arrays(model)
    assert len(found) == len(ours)
    assert np.array_equal(found["model.embed_tokens.weight"], ours["embedding"])
    assert np.array_equal(found["lm_head.weight"], ours["head"])
    for layer in range(2):
        there, here = f"model.layers.{layer}.", f"blocks.{layer}."
        for name, other in (
            ("self_attn.q_proj", "query"),
            ("self_attn.k_proj", "key"),
            ("self_attn.v_proj", "value"),
            ("self_attn.o_proj", "output"),
            ("mlp.fc1", "up"),
            ("mlp.fc2", "down"),
        ):
            array = found[f"{there}{name}.weight"]
            assert array.dtype == np.float32
            assert np.array_equal(array, ours[here + other].T)
    assert found["model.layers.0.mlp.fc1.weight"].shape == (96, 32)
    assert found["model.layers.0.self_attn.k_proj.weight"].shape == (16, 32)


def test_bfloat16_rounds_each_number(model: GPT, exported: Path, tokenizer_file: Path, tmp_path: Path) -> None:
    export_directory(model, tokenizer_file, tmp_path / "half", "bfloat16")
    assert json.loads((tmp_path / "half/config.json").read_text())["dtype"] == "bfloat16"
    exact, half = (load_file(place / "model.safetensors") for place in (exported, tmp_path / "half"))
    assert set(exact) == set(half)
    for name, array in half.items():
        assert array.dtype == jnp.bfloat16
        assert np.all(np.abs(array.astype(np.float32) - exact[name]) <= np.abs(exact[name]) / 256)
    assert (tmp_path / "half/model.safetensors").stat().st_size < 0.6 * (exported / "model.safetensors").stat().st_size


def test_config_says_what_the_model_is(tokenizer: Tokenizer, exported: Path) -> None:
    config = json.loads((exported / "config.json").read_text())
    assert config == {
        **{"architectures": ["NanoChatForCausalLM"], "model_type": "nanochat", "dtype": "float32"},
        **{"vocab_size": tokenizer.vocabulary, "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64},
        **{"hidden_act": "relu2", "rms_norm_eps": 1e-6, "final_logit_softcapping": 15.0},
        **{"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}},
        **{"attention_bias": False, "tie_word_embeddings": False},
        **{"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.assistant_end, "pad_token_id": tokenizer.bos},
    }
    generation = json.loads((exported / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [tokenizer.assistant_end, tokenizer.bos]


def test_no_softcap_is_null(make_model: Callable[..., GPT], tokenizer: Tokenizer) -> None:
    assert nanochat.config(make_model(softcap=0.0).shape, tokenizer, "float32")["final_logit_softcapping"] is None


def test_the_same_model_gives_the_same_bytes(
    make_model: Callable[..., GPT], tokenizer_file: Path, exported: Path, tmp_path: Path
) -> None:
    export_directory(make_model(), tokenizer_file, tmp_path / "again")
    assert {path.name for path in exported.iterdir()} == FILES
    for name in FILES:
        assert (exported / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


@pytest.mark.parametrize("field", REFUSED)
def test_a_feature_the_format_lacks_is_refused(
    field: str, make_model: Callable[..., GPT], tokenizer_file: Path, tmp_path: Path
) -> None:
    value, words = REFUSED[field]
    long_enough = {"sequence": 1024} if field == "window_pattern" else {}
    with pytest.raises(UserError, match=f"^the nanochat format can't express {words}; export .*recipe nanocode$"):
        export_directory(make_model(**{field: value}, **long_enough), tokenizer_file, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_all_features_are_named_in_one_line(make_model: Callable[..., GPT], tokenizer_file: Path, tmp_path) -> None:
    modern = make_model(sequence=1024, **{field: value for field, (value, _) in REFUSED.items()})
    with pytest.raises(UserError) as refusal:
        export_directory(modern, tokenizer_file, tmp_path / "out")
    assert all(words in str(refusal.value) for _, words in REFUSED.values())
    assert "\n" not in str(refusal.value)


def test_a_pattern_without_effect_is_no_feature(make_model: Callable[..., GPT]) -> None:
    # The last layer always sees the whole context, and so does a window as long as that.
    assert nanochat.unexpressible(make_model(depth=1, window_pattern="S", sequence=1024).shape) == []
    assert nanochat.unexpressible(make_model(window_pattern="SSSL").shape) == []


def test_no_field_of_a_model_is_forgotten() -> None:
    assert {field.name for field in dataclasses.fields(Shape)} == EXPRESSED | set(REFUSED)


def test_the_tokenizer_of_another_model_is_refused(
    make_model: Callable[..., GPT], tokenizer_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"the tokenizer has 400 tokens, the model 97"):
        export_directory(make_model(vocabulary=97), tokenizer_file, tmp_path / "out")


@pytest.mark.parametrize("text", ["def f(x):\n    return 1234", "Grüße 🧑‍🚀 \x00", "", " \n\t "])
def test_the_exported_tokenizer_gives_our_ids(text: str, tokenizer: Tokenizer, exported: Path) -> None:
    theirs = Backend.from_file(str(exported / "tokenizer.json"))
    assert theirs.encode(text, add_special_tokens=False).ids == tokenizer.encode(text)
    assert theirs.encode(text).ids == [tokenizer.bos, *tokenizer.encode(text)]
    assert theirs.decode(tokenizer.encode(text)) == text
    again = Tokenizer.load(exported)
    assert (again.encode(text), again.special) == (tokenizer.encode(text), tokenizer.special)


def test_an_export_is_not_taken_for_one_of_our_own_models(model: GPT, exported: Path, tmp_path: Path) -> None:
    save_model(model, tmp_path)
    ours, theirs = load_file(tmp_path / "model.safetensors"), load_file(exported / "model.safetensors")
    assert sum(x.size for x in ours.values()) == sum(x.size for x in theirs.values())
    assert not set(ours) & set(theirs)
