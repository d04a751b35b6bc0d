"""An export as a directory: config.json, generation_config.json, model.safetensors and the tokenizer.

The bytes are a function of model, tokenizer and type alone. The directory is written beside its place
under a name of its own and renamed when all is on the disk: it is there whole or not at all.
"""

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import save_file

from nanocode_core.errors import UserError
from nanocode_core.export import chat, nanochat
from nanocode_core.model.gpt import GPT
from nanocode_core.store.local import sync
from nanocode_core.tokenizer import Tokenizer

FILES = frozenset(
    {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
)


def export_directory(model: GPT, tokenizer: Path, target: Path, dtype: str = "float32", replace: bool = False) -> None:
    """Write a model and its tokenizer in the `nanochat` format.

    Args:
        tokenizer: the model's tokenizer.json, or a directory with one.
        target: absent or an empty directory; with `replace` also an earlier export.
        dtype: of the tensors: float32 (exact) or bfloat16.

    Raises:
        UserError: the format can't express the model, the type is unknown, `target` is taken or
            can't be written.
    """
    check(target, dtype, replace)
    file = tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer
    vocabulary = Tokenizer.load(file)
    config = nanochat.config(model.shape, vocabulary, dtype)
    with _directory(target, replace) as partial:
        _json(partial / "config.json", config)
        _json(partial / "generation_config.json", chat.generation_config(vocabulary))
        (partial / "tokenizer.json").write_text(chat.tokenizer_json(file), encoding="utf-8")
        _json(partial / "tokenizer_config.json", chat.tokenizer_config(model.shape.sequence))
        save_file(nanochat.tensors(model, dtype), partial / "model.safetensors", metadata={"format": "pt"})
        # The library lets the owner alone read it; a server may be somebody else.
        shutil.copymode(partial / "config.json", partial / "model.safetensors")


def check(target: Path, dtype: str, replace: bool) -> None:
    """Refuse what `export_directory` would refuse whatever the model is.

    Raises:
        UserError: the type is unknown; `target` is a file, or holds files (unless `replace` and an
            export wrote them all).
    """
    if dtype not in nanochat.DTYPES:
        raise UserError(f"unknown dtype {dtype!r}; there are {' and '.join(nanochat.DTYPES)}")
    with _told(target):
        _check_target(target, replace)


def _check_target(target: Path, replace: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"{target} is a file; name a new directory")
    there = sorted(path.name for path in target.iterdir())
    foreign = [name for name in there if name not in FILES]
    if there and not replace:
        raise UserError(f"{target} is not empty; name a new directory, or replace an earlier export with --force")
    if foreign:
        raise UserError(f"{target} holds {foreign[0]!r}, which no export wrote; name another directory")


@contextmanager
def _directory(target: Path, replace: bool) -> Iterator[Path]:
    """A private directory beside `target`; on success it becomes `target`, else nothing is left of it."""
    target = target.resolve()
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        with _told(target):
            partial.mkdir(parents=True)
            yield partial
            for path in (*sorted(partial.iterdir()), partial):
                sync(path)
            _move(partial, target, replace)
            sync(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _told(target: Path) -> Iterator[None]:
    """What the system refuses (no space, no permission), as one line for the user."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{target} can't be written ({reason}); name another directory") from None


def _move(partial: Path, target: Path, replace: bool) -> None:
    _check_target(target, replace)  # again: writing took a while
    if not target.exists() or not any(target.iterdir()):
        os.rename(partial, target)
        return
    former = partial.with_suffix(".former")
    os.rename(target, former)
    try:
        os.rename(partial, target)
    except OSError:
        os.rename(former, target)
        raise
    shutil.rmtree(former)


def _json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
