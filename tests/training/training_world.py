"""The artifacts that the training stages read, made small; and a way to run a stage in a process of its own.

    python training_world.py STAGE ROOT

builds STAGE in ROOT/STAGE-work from the inputs under ROOT, as a job would, so that a test can kill it.
"""

import json
import random
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from nanocode_core.config import Config, load_config
from nanocode_core.jobs.job import Job
from nanocode_core.store import Store

WORDS = [
    "read",
    "write",
    "edit",
    "file",
    "path",
    "the",
    "a",
    "def",
    "return",
    "value",
    "name",
    "bug",
    "fix",
    "line",
    "call",
    "test",
    "print",
]
SETTINGS = {
    "tokenizer": {"vocabulary": 320},
    "model": {"depth": 2, "width": 32, "heads": 2, "sequence": 64, "compute": "float32"},
    "training": {
        "steps": 60,
        "batch_sequences": 8,
        "validation_tokens": 1_000,
        "validate_every": 20,
        "sample_every": 30,
    },
    "sft": {"epochs": 2.0, "batch_sequences": 8, "validate_every": 10},
    "dpo": {"epochs": 6.0, "batch_pairs": 4, "optimizer": {"matrix_lr": 1e-3, "embedding_lr": 1e-3, "head_lr": 1e-3}},
    "checkpoints": {"minutes": 10.0, "steps": 3},
}


def sentence(seed: int, words: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def make_world(root: Path) -> None:
    """tokenizer/, tokens/ and synthetic/ under root."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from nanocode_core.tokenizer import Conversation, Tokenizer, Turn, to_json, turn_to_json
    from nanocode_core.tokenizer.train import train

    for name in ("tokenizer", "tokens/train", "tokens/validation", "synthetic"):
        (root / name).mkdir(parents=True)
    train([sentence(n, 200) for n in range(20)], 320).save(str(root / "tokenizer" / "tokenizer.json"))
    tokenizer = Tokenizer.load(root / "tokenizer")

    def stream(seed: int, documents: int) -> np.ndarray:
        texts = (sentence(seed + n, 60) for n in range(documents))
        return np.concatenate([np.array([tokenizer.bos, *tokenizer.encode(text)], np.uint16) for text in texts])

    rows = stream(100, 150)
    rows = rows[: len(rows) // 65 * 65].reshape(-1, 65)
    rows.tofile(root / "tokens/train/shard_00000.bin")
    held_out = {source: stream(seed, 12) for source, seed in (("code", 5_000), ("prose", 6_000))}
    for source, ids in held_out.items():
        ids.tofile(root / f"tokens/validation/{source}.bin")
    facts = {
        "dtype": "<u2",
        "row_length": 65,
        "vocabulary": tokenizer.vocabulary,
        "bos": tokenizer.bos,
        "train": {"shards": [{"file": "train/shard_00000.bin", "rows": len(rows)}]},
        "validation": {s: {"file": f"validation/{s}.bin", "tokens": len(ids)} for s, ids in held_out.items()},
    }
    (root / "tokens/tokens.json").write_text(json.dumps(facts))

    def conversation(seed: int) -> Conversation:
        return Conversation((Turn("user", sentence(seed, 4)), Turn("assistant", "sure: " + sentence(seed, 4))))

    def rollouts(first: int, count: int) -> pa.Table:
        return pa.table({"conversation": [json.dumps(to_json(conversation(first + n))) for n in range(count)]})

    def pairs(first: int, count: int) -> pa.Table:
        columns: dict[str, list[str]] = {"prompt": [], "chosen": [], "rejected": []}
        for n in range(first, first + count):
            good = conversation(n)
            bad = Turn("assistant", "as an assistant: " + sentence(n + 1, 4))
            columns["prompt"].append(json.dumps(to_json(Conversation(good.turns[:1]))))
            columns["chosen"].append(json.dumps([turn_to_json(good.turns[1])]))
            columns["rejected"].append(json.dumps([turn_to_json(bad)]))
        return pa.table(columns)

    pq.write_table(rollouts(0, 200), root / "synthetic/rollouts.parquet")
    pq.write_table(rollouts(1_000, 20), root / "synthetic/held_out_rollouts.parquet")
    pq.write_table(pairs(0, 40), root / "synthetic/pairs.parquet")
    pq.write_table(pairs(1_000, 12), root / "synthetic/held_out_pairs.parquet")


def world_config(root: Path, **changes: Any) -> Config:
    run = {"run": {"store": str(root / "store"), "cache": str(root / "cache")}}
    return load_config("smoke", overrides={**SETTINGS, **run, **changes})


def make_job(stage: str, root: Path, work: Path, config: Config) -> Job:
    """A job whose inputs are the directories under root."""
    (work / "out").mkdir(parents=True, exist_ok=True)
    inputs: Any = {child.name: SimpleNamespace(path=child) for child in root.iterdir() if child.is_dir()}
    return Job(stage, "0" * 16, config, inputs, work, work / "out", Store(config.run.store))


def optimizer(steps: int, width: int) -> Any:
    """The default optimizer of a run, as `train` takes it."""
    from nanocode_core.config.model import Optimizer
    from nanocode_core.training.optimizer import build_optimizer

    return partial(build_optimizer, Optimizer(), steps, width)


def saved_state(job: Job) -> dict[str, np.ndarray]:
    """All arrays of the newest checkpoint: parameters, optimizer state and step."""
    import orbax.checkpoint as ocp

    newest = max((p for p in (job.work / "checkpoints").iterdir() if p.name.isdecimal()), key=lambda p: int(p.name))
    with ocp.PyTreeCheckpointer() as reader:
        names = reader.metadata(newest).item_metadata.tree
        plain = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
        state: dict[str, np.ndarray] = reader.restore(newest, args=ocp.args.PyTreeRestore(restore_args=plain))
    return state


def build(stage: str, job: Job) -> dict[str, Any]:
    from nanocode_core.training import dpo, pretrain, sft

    return {"pretrain": pretrain, "sft": sft, "dpo": dpo}[stage].build(job)


if __name__ == "__main__":
    stage, place = sys.argv[1], Path(sys.argv[2])
    build(stage, make_job(stage, place, place / f"{stage}-work", world_config(place)))
