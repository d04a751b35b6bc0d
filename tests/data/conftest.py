"""A corpus of four shards in two sources, and a tokenizer trained on it."""

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanocode_core.tokenizer import Tokenizer
from nanocode_core.tokenizer.train import train

SENTENCE = "the agent reads a file, finds (a) bug_in line 42 and mends it: naïve → 你好 None"
WORDS = [*SENTENCE.split(), "\n", "", ""]


def text(seed: int, words: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    (root / "train").mkdir()
    (root / "validation").mkdir()
    for shard in range(4):
        rows = [
            {
                "text": text(1_000 * shard + n, 1 + n * n % 700),
                "source": f"s{n % 2}",
                "content": ("code", "prose")[n % 2],
            }
            for n in range(400)
        ]
        pq.write_table(pa.Table.from_pylist(rows), root / "train" / f"shard_{shard:05d}.parquet")
    for source in range(2):
        held_out = [text(-1 - source - 2 * n, 20 + n) for n in range(30)]
        pq.write_table(pa.table({"text": held_out}), root / "validation" / f"s{source}.parquet")
    return root


@pytest.fixture(scope="session")
def tokenizer_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tokenizer")
    train([text(n, 300) for n in range(50)], 400).save(str(root / "tokenizer.json"))
    return root


@pytest.fixture(scope="session")
def tokenizer(tokenizer_artifact: Path) -> Tokenizer:
    return Tokenizer.load(tokenizer_artifact)
