"""The corpus stage: sources -> `train/shard_*.parquet`, `validation/<source>.parquet`, `corpus.json`.

Three steps run at once, each ahead of the next: units are fetched, made and indexed on all cores;
the mixture reads the indexes in order and plans shards; planned shards are written on all cores.
No step holds more than an index, a plan and a batch of text; only digests (16 bytes a document)
stay. The plan depends on nothing but config and sources, so files that a killed build has left
are taken as they are.
"""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nanocode_core.config import Config
from nanocode_core.config.model import HubSource, PythonSource
from nanocode_core.config.model import Source as SourceConfig
from nanocode_core.corpus import files, hub, python, tables
from nanocode_core.corpus.identity import require_same
from nanocode_core.corpus.mixture import Document, Mixture, Pick, distinct, take
from nanocode_core.corpus.parallel import closing, cores, in_order, processes
from nanocode_core.corpus.shards import PLACE, ShardPlan, write_shard
from nanocode_core.corpus.units import TRAIN, VALIDATION, Split, Unit, prepare
from nanocode_core.errors import UserError

if TYPE_CHECKING:
    from nanocode_core.jobs.job import Job

_DOWNLOADS = 4
"""Units of a source that are fetched ahead, at least."""


@dataclass
class Source:
    """A source under way. `totals` are (documents, characters, bytes) of training and validation."""

    name: str
    content: str
    units: Sequence[Unit]
    folder: Path
    indexed: Callable[[Unit, Path], "Future[Path]"]
    ahead: int
    totals: dict[str, list[int]] = field(default_factory=lambda: {"train": [0, 0, 0], "validation": [0, 0, 0]})

    def documents(self, part: int) -> Iterator[Document]:
        """The documents of a part, TRAIN or VALIDATION, in order; indexes units as they are needed."""
        other = Split.ALL if part == TRAIN else Split.NONE
        wanted = [number for number, unit in enumerate(self.units) if unit.split is not other]
        indexes = in_order(lambda number: self.indexed(self.units[number], self.folder), wanted, self.ahead)
        for number, path in zip(wanted, indexes, strict=True):
            index = np.load(path, allow_pickle=False)
            for row in np.flatnonzero(index["part"] == part).tolist():
                digest, characters, size, _ = index[row].item()
                yield Document(number, row, bytes(digest), characters, size)

    def count(self, part: str, pick: Pick) -> None:
        """Add a document that was taken to the totals."""
        document, size = pick.document, pick.document.bytes
        if pick.characters < document.characters:
            unit = self.units[document.unit]
            text = tables.Cursor(unit.path(self.folder), unit.column, document.row).text(document.row)
            size = len(text[: pick.characters].encode())
        for place, amount in enumerate((1, pick.characters, size)):
            self.totals[part][place] += amount


def build(job: "Job") -> dict[str, Any]:
    """Build the corpus of `job.config.corpus` in `job.out`; returns the headline metrics.

    Raises:
        UserError: a source can't be read, is not what it was when the run was planned, or gives no document for
            training or for validation.
    """
    require_same(job.config, job.identity)
    workers = job.config.corpus.workers or cores()
    with processes(workers) as pool, closing(ThreadPoolExecutor(max(_DOWNLOADS, 2 * workers) + 2)) as threads:
        sources = _sources(job, pool, threads, workers)
        seen: set[bytes] = set()
        for source in sources:
            _validation(job, source, seen)
        mixture, shards = _train(job, sources, seen, pool, workers)
    return _summary(job, sources, mixture, shards)


def _sources(job: "Job", pool: Executor, threads: Executor, workers: int) -> list[Source]:
    def indexed(unit: Unit, folder: Path) -> "Future[Path]":
        return threads.submit(_prepare, pool, unit, folder, job.config.seed)

    opened = []
    for source in job.config.corpus.sources:
        folder = job.work / "sources" / source.name
        folder.mkdir(parents=True, exist_ok=True)
        units = _units(job.config, source, folder)
        ahead = max(workers, _DOWNLOADS) if isinstance(source, HubSource) else workers
        opened.append(Source(source.name, source.content, units, folder, indexed, ahead))
        kind = "groups of modules" if isinstance(source, PythonSource) else "files"
        commit = f" of commit {units[0].commit}" if units and isinstance(units[0], hub.HubUnit) else ""
        job.log(f"{source.name}: {len(units)} {kind}{commit}")
    return opened


def _units(config: Config, source: SourceConfig, folder: Path) -> Sequence[Unit]:
    if isinstance(source, PythonSource):
        return python.units(source, config.seed)
    if isinstance(source, HubSource):
        return hub.units(source, Path(config.run.cache), folder)
    return files.units(source)


def _prepare(pool: Executor, unit: Unit, folder: Path, seed: int) -> Path:
    """Fetch in this thread, then compute in a process."""
    unit.fetch()
    return pool.submit(prepare, unit, folder, seed).result()


def _validation(job: "Job", source: Source, seen: set[bytes]) -> None:
    """Write the source's validation shard; training will have none of its documents."""
    picks = list(take(distinct(source.documents(VALIDATION), seen), job.config.corpus.validation_characters))
    if not picks:
        raise UserError(
            f"corpus source {source.name!r} has no document for validation of its own (empty, or copies of another "
            "source's); give it more text or remove it"
        )
    for pick in picks:
        source.count("validation", pick)
    path = job.out / "validation" / f"{source.name}.parquet"
    if not path.exists():
        tables.write_documents(path, ("text",), ((text,) for text in _texts(source, picks)))


def _texts(source: Source, picks: Iterable[Pick]) -> Iterator[str]:
    number, cursor = -1, None
    for _, document, characters in picks:
        if cursor is None or number != document.unit:
            number, unit = document.unit, source.units[document.unit]
            cursor = tables.Cursor(unit.path(source.folder), unit.column, document.row)
        yield cursor.text(document.row)[:characters]


def _train(job: "Job", sources: list[Source], seen: set[bytes], pool: Executor, workers: int) -> tuple[Mixture, int]:
    """Mix and write the training shards; returns the ended mixture and the number of shards."""
    config = job.config.corpus
    mixture = Mixture(tuple(source.content for source in sources), config.code_share, config.characters)
    writing: deque[Future[None]] = deque()
    picks, characters, shards = list[Pick](), 0, 0
    reached = [0] * len(sources)

    def close_shard() -> None:
        nonlocal picks, characters, shards
        plan = _plan(job.out / "train" / f"shard_{shards:05d}.parquet", sources, picks)
        writing.append(pool.submit(write_shard, plan))
        if len(writing) > 2 * workers:
            writing.popleft().result()
        picks, characters, shards = [], 0, shards + 1

    for pick in mixture.picks([source.documents(TRAIN) for source in sources], seen):
        sources[pick.source].count("train", pick)
        picks.append(pick)
        characters += pick.characters
        if characters >= config.shard_characters:
            close_shard()
        if config.characters:
            job.progress(sum(mixture.given.values()), config.characters, "characters mixed")
        else:
            reached[pick.source] = pick.document.unit  # this one is not done yet
            job.progress(sum(reached), sum(len(source.units) for source in sources), "files mixed")
    for content, share in (("code", config.code_share), ("prose", 1 - config.code_share)):
        if share > 0 and not mixture.of(content):
            raise UserError(f"corpus.sources: no {content} for training; add a source or change corpus.code_share")
    if picks:
        close_shard()
    for number, done in enumerate(writing, shards - len(writing) + 1):
        done.result()
        job.progress(number, shards, "shards written")
    return mixture, shards


def _plan(path: Path, sources: list[Source], picks: list[Pick]) -> ShardPlan:
    places = np.array([(p.source, p.document.unit, p.document.row, p.characters) for p in picks], PLACE)
    used = sorted({(p.source, p.document.unit) for p in picks})
    units = {(source, unit): sources[source].units[unit] for source, unit in used}
    parquet = {place: (unit.path(sources[place[0]].folder), unit.column) for place, unit in units.items()}
    return ShardPlan(path, places, parquet, tuple((source.name, source.content) for source in sources))


def _summary(job: "Job", sources: list[Source], mixture: Mixture, shards: int) -> dict[str, Any]:
    """Write corpus.json, say where the corpus is short, return the headline metrics."""
    names = ("documents", "characters", "bytes")
    train = [sum(source.totals["train"][place] for source in sources) for place in range(len(names))]
    share = round(mixture.of("code") / train[1], 4)
    asked = job.config.corpus.characters
    if asked and train[1] < asked:
        job.log(f"the sources have run out of {mixture.ended}: {train[1]:,} characters instead of {asked:,}")
    table = {
        **dict(zip(names, train, strict=True)),
        "code_share": share,
        "shards": shards,
        "sources": {
            source.name: {
                "content": source.content,
                **{part: dict(zip(names, source.totals[part], strict=True)) for part in ("train", "validation")},
            }
            for source in sources
        },
    }
    partial = job.work / "corpus.json"
    partial.write_text(json.dumps(table, indent=2) + "\n")
    partial.replace(job.out / "corpus.json")
    return {"documents": train[0], "characters": train[1], "code_share": share, "shards": shards}
