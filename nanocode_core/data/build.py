"""The stage `tokens`: corpus + tokenizer -> packed training rows and validation streams.

Each corpus shard becomes one token shard, packed on its own, so shards are made side by side on all
cores and in any order, with the same bytes. A start after a kill makes those that are missing.
`rows` describes the files.
"""

import json
import os
from collections import Counter
from concurrent.futures import as_completed
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanocode_core.corpus.parallel import cores, processes
from nanocode_core.data.packing import Tally
from nanocode_core.data.shards import Counts, Part, id_type, make, read_facts
from nanocode_core.errors import UserError
from nanocode_core.tokenizer import Tokenizer
from nanocode_core.tokenizer.documents import shards, validation

if TYPE_CHECKING:
    from nanocode_core.jobs.job import Job


def build(job: "Job") -> dict[str, Any]:
    """Build the tokens artifact; returns rows, tokens, documents and the share that was cropped.

    Raises:
        UserError: the corpus is too small for a single row.
    """
    row = job.config.model.sequence + 1
    corpus = job.inputs["corpus"].path
    train = [_part(job, source, f"train/shard_{number:05d}.bin", row) for number, source in enumerate(shards(corpus))]
    held_out = {name: _part(job, source, f"validation/{name}.bin", None) for name, source in validation(corpus).items()}
    _make_all(job, [*train, *held_out.values()])

    tally: Counter[str] = Counter(asdict(Tally()))
    sources: dict[str, Counter[str]] = {}
    for part in train:
        facts = read_facts(part)
        tally.update(facts["tally"])
        for name, counts in facts["sources"].items():
            sources.setdefault(name, Counter()).update(counts)
    if not tally["rows"]:
        raise UserError(
            f"the corpus gives no row of {row} tokens (model.sequence + 1); take more text (corpus.*) or shorter rows"
        )
    tokenizer = Tokenizer.load(job.inputs["tokenizer"].path)
    facts = {
        "dtype": id_type(tokenizer.vocabulary).str,
        "row_length": row,
        "vocabulary": tokenizer.vocabulary,
        "bos": tokenizer.bos,
        "train": {
            "shards": [{"file": _name(job, part), "rows": read_facts(part)["tally"]["rows"]} for part in train],
            **tally,
            "sources": {name: dict(sources[name]) for name in sorted(sources)},
        },
        "validation": {
            name: {"file": _name(job, part), **read_facts(part)["sources"].get(name, asdict(Counts()))}
            for name, part in held_out.items()
        },
    }
    (job.out / "tokens.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return {
        "rows": tally["rows"],
        "tokens": tally["packed"],
        "documents": tally["documents"],
        "cropped_share": round(1 - tally["packed"] / sum(tally[key] for key in ("packed", "cropped", "unfinished")), 4),
        "validation_bytes": sum(source["bytes"] for source in facts["validation"].values()),
    }


def _part(job: "Job", source: Path, name: str, row: int | None) -> Part:
    flat = name.replace("/", "-")
    places = job.work / "partial" / flat, job.out / name, job.work / "facts" / f"{flat}.json"
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
    return Part(source, job.inputs["tokenizer"].path / "tokenizer.json", row, *places)


def _name(job: "Job", part: Part) -> str:
    return part.target.relative_to(job.out).as_posix()


def _make_all(job: "Job", parts: list[Part]) -> None:
    """Make the parts that are missing: a single shard here on all threads, several in a process each."""
    todo = [part for part in parts if not part.facts.exists()]
    done = len(parts) - len(todo)
    if done:
        job.log(f"{done} of {len(parts)} files are there from an earlier start")
    allowed = job.config.corpus.workers or cores()
    workers = min(allowed, sum(part.row is not None for part in todo))
    if workers <= 1:
        for number, part in enumerate(todo, done + 1):
            make(part)
            job.progress(number, len(parts), "files")
        return
    with processes(workers) as pool:
        futures = [pool.submit(_make_in_process, part, allowed // workers) for part in todo]
        for number, future in enumerate(as_completed(futures), done + 1):
            future.result()
            job.progress(number, len(parts), "files")


def _make_in_process(part: Part, threads: int) -> None:
    """Make a part in a worker process, with its share of the threads (read at the first encoding)."""
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    make(part)
