"""Parquet files of documents: read in bounded memory, written the same byte for byte.

Text is read a thousand rows at a time, so a file's size does not matter. Files appear under their
name only when complete: they are written beside it and renamed.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nanocode_core.errors import UserError

ROWS = 1_000
"""Rows that are in memory at a time, and in a row group."""


def read_texts(path: Path, column: str, start: int = 0) -> Iterator[tuple[int, list[str | None]]]:
    """The text column from row `start` on, as (number of the first row, texts) a batch.

    Raises:
        UserError: not a parquet file, no such column, or a column that holds no text.
    """
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is not a readable parquet file ({_first_line(error)}); replace or remove it") from None
    with file:
        names = file.schema_arrow.names
        if column not in names:
            raise UserError(f"{path} has no column {column!r}; it has {', '.join(map(repr, names))}: set `column`")
        kind = file.schema_arrow.field(column).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
            raise UserError(f"{path}: column {column!r} holds {kind}, not text; set `column` to one that does")
        row, groups = 0, list[int]()
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if groups or row + rows > start:
                groups.append(group)
            else:
                row += rows
        try:
            for batch in file.iter_batches(batch_size=ROWS, row_groups=groups, columns=[column], use_threads=False):
                if row + batch.num_rows > start:
                    texts = batch.column(0).to_pylist()
                    skip = max(0, start - row)
                    yield row + skip, texts[skip:]
                row += batch.num_rows
        except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is damaged after row {row} ({_first_line(error)}); replace it") from None


class Cursor:
    """Single texts of a parquet file, asked for in ascending row order."""

    def __init__(self, path: Path, column: str, start: int) -> None:
        self._batches = read_texts(path, column, start)
        self._first, self._texts = 0, list[str | None]()
        self._path = path

    def text(self, row: int) -> str:
        """The text in `row`, which must not be smaller than the last one asked for."""
        while row >= self._first + len(self._texts):
            try:
                self._first, self._texts = next(self._batches)
            except StopIteration:
                raise UserError(f"{self._path} has lost row {row} since it was read first; run again") from None
        text = self._texts[row - self._first]
        if text is None:
            raise UserError(f"{self._path} has changed in row {row} since it was read first; run again")
        return text


def write_documents(path: Path, columns: tuple[str, ...], documents: Iterable[tuple[str, ...]]) -> None:
    """Write rows of strings as `path`, atomically; equal rows make equal bytes.

    zstd, no statistics, no index: readers scan these files from front to back.
    """
    schema = pa.schema([(name, pa.string()) for name in columns])
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    options: dict[str, Any] = {
        "version": "2.6",
        "compression": "zstd",
        "compression_level": 3,
        "use_dictionary": [name for name in columns if name != "text"],
        "write_statistics": False,
        "store_schema": False,
    }
    with pq.ParquetWriter(partial, schema, **options) as writer:
        rows: list[tuple[str, ...]] = []
        for document in documents:
            rows.append(document)
            if len(rows) == ROWS:
                writer.write_batch(_batch(rows, schema), row_group_size=ROWS)
                rows = []
        if rows:
            writer.write_batch(_batch(rows, schema), row_group_size=ROWS)
    put(partial, path)


def put(partial: Path, path: Path) -> None:
    """Give a complete file its name, after its content is on the disk."""
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def _batch(rows: list[tuple[str, ...]], schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [pa.array(values, pa.string()) for values in zip(*rows, strict=True)], schema=schema
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
