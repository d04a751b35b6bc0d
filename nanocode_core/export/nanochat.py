"""A model in the `nanochat` format: its config and tensors by the names that transformers reads.

The architecture is ours (gpt.py) under other names: the rotation has the same sign and norms have no
weights, so a tensor is an array of ours transposed to torch's [out, in], nothing else. What the
format can't express is refused, never left out. Source: transformers' `NanoChatForCausalLM`.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from nanocode_core.errors import UserError
from nanocode_core.model.gpt import GPT
from nanocode_core.model.shape import Shape
from nanocode_core.model.weights import named_arrays
from nanocode_core.tokenizer import Tokenizer

DTYPES = ("float32", "bfloat16")
"""The types that tensors can have; master weights are float32, so that one is exact."""

_MATRICES = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}


def require_expressible(shape: Shape) -> None:
    """Refuse a model that computes what the format has no field for.

    Raises:
        UserError: names every such feature.
    """
    features = unexpressible(shape)
    if features:
        raise UserError(
            f"the nanochat format can't express {', '.join(features)}; export a model of the recipe nanocode"
        )


def unexpressible(shape: Shape) -> list[str]:
    """The features of a model that the format has no field for, in words."""
    features = {
        "value embeddings": bool(shape.value_layers),
        "sliding windows": any(shape.windows),
        "smear": shape.smear,
        "residual scalars": shape.residual_scalars,
        "backout": shape.backout,
        "a scale on queries and keys": shape.qk_scale != 1,
    }
    return [name for name, present in features.items() if present]


def config(shape: Shape, tokenizer: Tokenizer, dtype: str) -> dict[str, Any]:
    """The content of config.json.

    Raises:
        UserError: the format can't express the model, or the tokenizer is another model's.
    """
    require_expressible(shape)
    if tokenizer.vocabulary != shape.vocabulary:
        raise UserError(
            f"the tokenizer has {tokenizer.vocabulary} tokens, the model {shape.vocabulary}; "
            "export the model with the tokenizer it was trained with"
        )
    return {
        "architectures": ["NanoChatForCausalLM"],
        "model_type": "nanochat",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "intermediate_size": shape.mlp_ratio * shape.width,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": shape.sequence,
        "hidden_act": "relu2",
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "final_logit_softcapping": shape.softcap or None,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": tokenizer.bos,
        "eos_token_id": tokenizer.assistant_end,
        "pad_token_id": tokenizer.bos,
        "dtype": dtype,
    }


def tensors(model: GPT, dtype: str) -> dict[str, NDArray[Any]]:
    """The content of model.safetensors: contiguous arrays, matrices [out, in], in the type asked for.

    Raises:
        UserError: the model has an array that the format has no name for.
    """
    # One array at a time: beside the model there is only the copy that will be written.
    return {
        _name(name): np.ascontiguousarray(_torch_layout(name, array), jnp.dtype(dtype))
        for name, array in sorted(named_arrays(model).items())
    }


def _name(ours: str) -> str:
    """The format's name of an array: blocks.0.query -> model.layers.0.self_attn.q_proj.weight."""
    match ours.split("."):
        case ["embedding"]:
            return "model.embed_tokens.weight"
        case ["head"]:
            return "lm_head.weight"
        case ["blocks", layer, matrix] if matrix in _MATRICES:
            return f"model.layers.{layer}.{_MATRICES[matrix]}.weight"
    raise UserError(f"the nanochat format can't express {ours}; export a model of the recipe nanocode")


def _torch_layout(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """Matrices of the blocks are [in, out] here; embedding and head are [V, d] on both sides."""
    return array.T if name.startswith("blocks.") else array
