"""The presets: one name sets every field. d3 ... d24 have the original's shapes and token budgets.

What a preset sets under one recipe only stands under `RECIPE_ONLY`.
"""

from typing import Any

RECIPE_ONLY = "recipe only"

_HUB: dict[str, Any] = {
    "kind": "hub",
    "column": "text",
    "pattern": "shard_*.parquet",
}


def _original(
    depth: int, width: int, heads: int, sequence: int, vocabulary: int, prose: int, code: int, batch: int
) -> dict[str, Any]:
    """A preset of the original: FineWeb-Edu and Stack-V2 Python 5:1, eight tokens a parameter."""
    return {
        "corpus": {
            "sources": [
                {
                    **_HUB,
                    "name": "fineweb-edu",
                    "content": "prose",
                    "repo": "karpathy/fineweb-edu-100b-shuffle",
                    "shards": prose,
                },
                {
                    **_HUB,
                    "name": "stack-v2",
                    "content": "code",
                    "repo": "smohammadi/the-stack-v2-python-shuffle",
                    "shards": code,
                },
            ],
            "validation_characters": 10_000_000,
        },
        "tokenizer": {"vocabulary": vocabulary},
        "model": {"depth": depth, "width": width, "heads": heads, "sequence": sequence},
        "training": {"validation_tokens": 5_000_000},
        RECIPE_ONLY: {"nanocode": {"training": {"batch_sequences": batch}}},
    }


PRESETS: dict[str, dict[str, Any]] = {
    # The run of a laptop: everything embedded, two cores, about a quarter of an hour.
    "demo": {
        "corpus": {"characters": 12_000_000, "validation_characters": 200_000},
        "tokenizer": {"vocabulary": 4_096, "train_characters": 12_000_000},
        "model": {"depth": 4, "width": 192, "heads": 3, "sequence": 512, "compute": "float32"},
        "training": {"tokens": 800_000, "batch_sequences": 8, "validation_tokens": 50_000, "validate_every": 50},
        "synthetic": {"rollouts": 3_300, "held_out": 144},
        "sft": {"epochs": 4.0, "batch_sequences": 8},
        "dpo": {"epochs": 0.25},
        "eval": {"tasks": 144},
        "checkpoints": {"minutes": 0.5},
    },
    # The demo with a few steps a stage: shows in two minutes that an installation works.
    "smoke": {
        "corpus": {"characters": 1_000_000, "validation_characters": 50_000},
        "tokenizer": {"vocabulary": 1_024, "train_characters": 1_000_000},
        "model": {"depth": 2, "width": 64, "heads": 2, "sequence": 512, "compute": "float32"},
        "training": {"steps": 6, "batch_sequences": 4, "validation_tokens": 8_000, "validate_every": 3},
        "synthetic": {"rollouts": 32, "held_out": 16},
        "sft": {"epochs": 1.0, "batch_sequences": 4},
        "dpo": {"batch_pairs": 4},
        "eval": {"tasks": 8, "max_turns": 2, "max_new_tokens": 32},
        "checkpoints": {"minutes": 0.5},
    },
    "d3": _original(3, 192, 2, 256, 8_000, 2, 2, 32),
    "d6": _original(6, 384, 3, 512, 32_768, 4, 2, 64),
    "d12": _original(12, 768, 3, 1_024, 32_768, 30, 8, 256),
    "d20": _original(20, 1_280, 5, 2_048, 32_768, 130, 30, 256),
    "d24": _original(24, 2_048, 8, 4_096, 32_768, 300, 60, 256),
}
