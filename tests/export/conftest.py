"""A tokenizer, a small model of its vocabulary whose every weight matters, and their export."""

import dataclasses
import textwrap
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from nanocode_core.export.directory import export_directory
from nanocode_core.model.gpt import GPT
from nanocode_core.model.shape import Shape
from nanocode_core.tokenizer import Tokenizer
from nanocode_core.tokenizer.train import train

TEXTS = [Path(textwrap.__file__).read_text(), "Grüße, 你好, naïve café 🧑‍🚀\r\n\t'LL 1234567\n"]


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train(TEXTS, 400).save(str(file))
    return file


@pytest.fixture(scope="session")
def tokenizer(tokenizer_file: Path) -> Tokenizer:
    return Tokenizer.load(tokenizer_file)


@pytest.fixture(scope="session")
def make_model(tokenizer: Tokenizer) -> Callable[..., GPT]:
    base = Shape(2, 32, 4, 2, 3, tokenizer.vocabulary, 64, 10_000.0, 15.0, "float32")

    def make(**changes: object) -> GPT:
        graph, params = nnx.split(GPT(dataclasses.replace(base, **changes), seed=0), nnx.Param)
        random = np.random.default_rng(0)
        params = jax.tree.map(lambda x: x + 0.3 * random.normal(size=x.shape).astype(np.float32), params)
        return nnx.merge(graph, params)

    return make


@pytest.fixture(scope="session")
def model(make_model: Callable[..., GPT]) -> GPT:
    return make_model()


@pytest.fixture(scope="session")
def exported(model: GPT, tokenizer_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("export") / "model"
    export_directory(model, tokenizer_file, target)
    return target
