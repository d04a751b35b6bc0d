"""What a model is, without its arrays: the fields of model.json, and what follows from them."""

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from nanocode_core.config.model import Model as ModelConfig


@dataclass(frozen=True)
class Shape:
    """Everything that decides the model's arrays and its function; see `config.model.Model` for the features."""

    depth: int
    width: int
    heads: int
    kv_heads: int
    mlp_ratio: int
    vocabulary: int
    sequence: int
    """Training context; the function itself has no limit."""
    rope_theta: float
    softcap: float
    compute: str
    qk_scale: float = 1.0
    window_pattern: str = "L"
    value_embeddings: bool = False
    smear: bool = False
    residual_scalars: bool = False
    backout: bool = False
    embedding_std: float = 1.0
    up_init: float = 1.0

    @property
    def head_size(self) -> int:
        """D."""
        return self.width // self.heads

    @cached_property
    def windows(self) -> tuple[int | None, ...]:
        """How far back each layer looks; None: to the start. Short is a quarter of the context, rounded up to 128."""
        short = -(-self.sequence // 4 // 128) * 128
        pattern = [self.window_pattern[i % len(self.window_pattern)] for i in range(self.depth - 1)] + ["L"]
        return tuple(short if letter == "S" and short < self.sequence else None for letter in pattern)

    @cached_property
    def value_layers(self) -> tuple[int, ...]:
        """The layers with a value embedding: every second one, the last included."""
        return tuple(range((self.depth - 1) % 2, self.depth, 2)) if self.value_embeddings else ()

    @cached_property
    def period(self) -> int:
        """The smallest number of layers after which their kinds repeat; the depth where they do not."""
        kinds = [(window, i in self.value_layers) for i, window in enumerate(self.windows)]
        divisors = (p for p in range(1, self.depth + 1) if self.depth % p == 0)
        return next(p for p in divisors if all(kinds[i] == kinds[i % p] for i in range(self.depth)))

    @classmethod
    def of(cls, config: ModelConfig, vocabulary: int) -> "Shape":
        """The shape a config asks for, with the vocabulary of its tokenizer."""
        fields = config.identity() | {"kv_heads": config.kv_heads or config.heads, "vocabulary": vocabulary}
        return cls(**fields)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for model.json."""
        return asdict(self)
