"""The recipes: what distinguishes how a model is built and trained, whatever its size.

`nanocode` is the original's architecture and optimizer: the defaults of the fields. `modern` is the
recipe of nanochat as of July 2026, but for the rates of small batches (training/horizon.py); each feature
is a field of its own (the docstrings of `Model` and `Optimizer` name its source). A recipe is laid over a
preset; single fields can be set on top.
"""

from typing import Any

_OPTIMIZER: dict[str, Any] = {
    "momentum": 0.97,
    "momentum_steps": 400,
    "orthogonalizer": "polar_express",
    "equilibrate": True,
    "renormalize": True,
    "second_moment": 0.9,
    "embedding_beta2": 0.995,
    "head_beta2": 0.96,
}

_MODERN: dict[str, Any] = {
    "model": {
        "rope_theta": 100_000.0,
        "qk_scale": 1.2,
        "window_pattern": "SSSL",
        "value_embeddings": True,
        "smear": True,
        "residual_scalars": True,
        "backout": True,
        "embedding_std": 0.8,
        "up_init": 0.4,
    },
    "training": {
        "tokens_per_parameter": 12.0,
        "parameters": "matrices_and_head",
        "optimizer": {
            **_OPTIMIZER,
            "head_lr": 0.008,
            "lr_by_batch": True,
            "warmup_steps": 40,
            "warmdown": 0.65,
            "final_lr": 0.05,
            "final_momentum": 0.90,
            "matrix_decay": 0.28,
            "embedding_decay": 0.001,
            "head_decay": 0.01,
        },
    },
    # Fine-tuning keeps the rates and the schedule of its preset.
    "sft": {"optimizer": _OPTIMIZER},
    "dpo": {"optimizer": _OPTIMIZER},
}

RECIPES: dict[str, dict[str, Any]] = {"nanocode": {}, "modern": _MODERN}
