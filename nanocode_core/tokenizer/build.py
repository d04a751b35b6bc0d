"""The stage `tokenizer`: corpus -> tokenizer.json, token_bytes.npy, comparison.json.

Trains on the corpus from its start, or takes over the file at `tokenizer.path`, and compares the
outcome with a tokenizer trained on the corpus without its code and with the files of
`tokenizer.compare`. A trained tokenizer is saved as soon as it is there: a second start goes on.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer as Backend

from nanocode_core.errors import UserError
from nanocode_core.tokenizer.adopt import adopt
from nanocode_core.tokenizer.compare import comparison_texts, measure
from nanocode_core.tokenizer.documents import contents, documents, shards
from nanocode_core.tokenizer.identity import label
from nanocode_core.tokenizer.listing import training_texts
from nanocode_core.tokenizer.tokenizer import Tokenizer, read_backend
from nanocode_core.tokenizer.train import train

if TYPE_CHECKING:
    from nanocode_core.jobs.job import Job


def build(job: "Job") -> dict[str, Any]:
    """Build the tokenizer artifact; returns vocabulary and bytes per token of each compared text.

    Raises:
        UserError: a file of tokenizer.path or tokenizer.compare is no (usable) tokenizer, or the
            corpus is empty.
    """
    settings = job.config.tokenizer
    corpus = job.inputs["corpus"].path
    others = [(label(path), read_backend(Path(path).expanduser())) for path in settings.compare]
    measured = comparison_texts(corpus)
    if settings.path is not None:
        backend = adopt(Path(settings.path).expanduser())
        job.log(f"took over {settings.path}")
        rows = [measure("this tokenizer", backend, measured)]
    else:
        there = contents(corpus)
        if not there:
            raise UserError("the corpus has no training documents; check corpus.sources and corpus.code_share")
        backend, characters = _trained(job, "tokenizer", there)
        rows = [{**measure("this tokenizer", backend, measured), "characters": characters}]
        if there == {"code", "prose"}:
            prose_only, characters = _trained(job, "without_code", {"prose"})
            rows.append({**measure("trained without code", prose_only, measured), "characters": characters})
    rows += [measure(name, other, measured) for name, other in others]

    tokenizer = Tokenizer(backend)
    if settings.path is None and tokenizer.vocabulary < settings.vocabulary:
        job.log(f"the corpus yields {tokenizer.vocabulary:,} tokens only, of {settings.vocabulary:,} wanted")
    write_text(job.out / "tokenizer.json", backend.to_str(pretty=True))
    np.save(job.out / "token_bytes.npy", tokenizer.token_bytes)
    sizes = {name: sum(len(text.encode()) for text in parts) for name, parts in measured.items()}
    table = json.dumps({"bytes": sizes, "tokenizers": rows}, indent=2, ensure_ascii=False)
    write_text(job.out / "comparison.json", table + "\n")
    ratios = {f"bytes_per_token {name}": value for name, value in rows[0]["bytes_per_token"].items()}
    job.log("bytes per token: " + ", ".join(f"{name[16:]} {value}" for name, value in ratios.items()))
    return {"vocabulary": tokenizer.vocabulary, **ratios}


def _trained(job: "Job", name: str, kinds: set[str]) -> tuple[Backend, int]:
    """A tokenizer trained on the documents of these kinds of content, and on how many characters.

    Taken from `work` where an earlier start has saved it.
    """
    saved = job.work / f"{name}.json"
    if not saved.exists():
        settings = job.config.tokenizer
        stream = chain.from_iterable(documents(shard) for shard in shards(job.inputs["corpus"].path))
        wanted = (document for document in stream if document.content in kinds)
        shown = "code" if "code" in kinds else "prose"  # what the Read tool would mostly show
        texts = training_texts(wanted, settings.train_characters, settings.tool_format_share, shown)
        count = Count()
        backend = train(_counted(job, texts, count), settings.vocabulary)
        job.log(f"trained {name.replace('_', ' ')} on {count.characters:,} characters")
        write_text(saved, json.dumps({"characters": count.characters, "tokenizer": backend.to_str()}))
    fields = json.loads(saved.read_text(encoding="utf-8"))
    return Backend.from_str(fields["tokenizer"]), fields["characters"]


@dataclass
class Count:
    """Characters that went by."""

    characters: int = 0


def _counted(job: "Job", texts: Iterable[str], count: Count) -> Iterator[str]:
    total = job.config.tokenizer.train_characters
    for text in texts:
        yield text
        count.characters += len(text)
        job.progress(min(count.characters, total - 1), total, "characters")


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
