"""Reading a `tokens` artifact, memory-mapped.

    train/shard_*.bin          rows of sequence + 1 ids; row r of the artifact lies in the shards in order
    validation/<source>.bin    one stream of ids: each document of the source behind its <|bos|>
    tokens.json                what is in them

Validation follows a flat protocol: the stream is read in windows of sequence + 1 ids that overlap by
one, so every id but the first is a target exactly once; the last window is filled up with <|bos|>,
which has no bytes. The bytes of the targets add up to the bytes of the text.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from nanocode_core.data.permutation import batch_rows


class TokenRows:
    """The training rows and validation windows of a tokens artifact.

    Attributes:
        facts: the contents of tokens.json.
        sequence: targets in a row; a row holds one id more.
        count: training rows.
    """

    def __init__(self, path: Path):
        self.path = path
        self.facts: dict[str, Any] = json.loads((path / "tokens.json").read_text(encoding="utf-8"))
        self.dtype = np.dtype(self.facts["dtype"])
        self.sequence: int = self.facts["row_length"] - 1
        rows = [shard["rows"] for shard in self.facts["train"]["shards"]]
        self._ends = np.cumsum(rows, dtype=np.int64)
        self.count = int(sum(rows))
        self._shards = [
            np.memmap(path / shard["file"], self.dtype, mode="r", shape=(shard["rows"], self.sequence + 1))
            if shard["rows"]
            else np.empty((0, self.sequence + 1), self.dtype)
            for shard in self.facts["train"]["shards"]
        ]

    def indices(self, step: int, batch_sequences: int, seed: int) -> np.ndarray:
        """The rows of a step: int64 [batch_sequences].

        Each epoch is a permutation of all rows, drawn from (seed, epoch); a batch may span two.
        """
        return batch_rows(step, batch_sequences, self.count, seed)

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Rows by number: int32 [len(indices), sequence + 1]."""
        out = np.empty((len(indices), self.sequence + 1), dtype=np.int32)
        shards = np.searchsorted(self._ends, indices, side="right")
        for place, (shard, index) in enumerate(zip(shards, indices, strict=True)):
            out[place] = self._shards[shard][index - self._ends[shard]]  # negative: counted from the shard's end
        return out

    def batch(self, step: int, batch_sequences: int, seed: int) -> np.ndarray:
        """The rows of a step, a pure function of the arguments: int32 [batch_sequences, sequence + 1]."""
        return self.take(self.indices(step, batch_sequences, seed))

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the validation sources."""
        return tuple(self.facts["validation"])

    def validation(self, source: str, tokens: int | None = None) -> np.ndarray:
        """Windows of a source's validation stream: int32 [windows, sequence + 1].

        Args:
            source: one of `sources`.
            tokens: take the windows that fit into so many targets, but one at least; None: all.
        """
        facts = self.facts["validation"][source]
        windows = max(0, -(-(facts["tokens"] - 1) // self.sequence))
        if tokens is not None:
            windows = min(windows, max(1, tokens // self.sequence))
        out = np.full((windows, self.sequence + 1), self.facts["bos"], dtype=np.int32)
        if not windows:
            return out
        stream = np.memmap(self.path / facts["file"], self.dtype, mode="r", shape=(facts["tokens"],))
        for window in range(windows):
            part = stream[window * self.sequence : (window + 1) * self.sequence + 1]
            out[window, : len(part)] = part
        return out
