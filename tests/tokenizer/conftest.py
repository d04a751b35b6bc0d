"""A small real corpus (modules of the standard library and their docstrings) and a tokenizer trained on it."""

import ast
import inspect
import logging
import statistics
import subprocess
import textwrap
import typing
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanocode_core.tokenizer import Tokenizer
from nanocode_core.tokenizer.train import train

MODULES: tuple[ModuleType, ...] = (inspect, logging, statistics, subprocess, textwrap, typing, ast)


def code() -> list[str]:
    return [inspect.getsource(module) for module in MODULES]


def prose() -> list[str]:
    found = []
    for text in code():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                found.append(ast.get_docstring(node))
    return [text for text in found if text]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    (root / "train").mkdir()
    (root / "validation").mkdir()
    rows = [{"text": text, "source": "py", "content": "code"} for text in code()[:-1]]
    rows += [{"text": text, "source": "docs", "content": "prose"} for text in prose()[:-20]]
    for number, part in enumerate((rows[::2], rows[1::2])):
        pq.write_table(pa.Table.from_pylist(part), root / "train" / f"shard_{number:05d}.parquet")
    pq.write_table(pa.table({"text": code()[-1:]}), root / "validation" / "py.parquet")
    pq.write_table(pa.table({"text": prose()[-20:]}), root / "validation" / "docs.parquet")
    return root


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer(train([*code(), *prose()], 1_000))
