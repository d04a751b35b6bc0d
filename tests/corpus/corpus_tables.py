"""Parquet files for the corpus tests: written, read, compared."""

import hashlib

import pyarrow as pa
import pyarrow.parquet as pq


def rows(folder):
    """All rows of the parquet files in a folder, in order."""
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def tree(folder):
    """Relative path -> sha256 of every file but those under logs/."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    found = {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return {name: value for name, value in found.items() if not name.startswith("logs/")}


def write_parquet(path, texts, column="text", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: pa.array(texts), "other": list(range(len(texts)))}), path, **options)
    return path
