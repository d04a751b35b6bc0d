"""Own files on gs:// while requests fail: the same corpus as from the same files here."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faults import FaultProxy, Faults
from gcs import faulty, gcs_address  # noqa: F401 (fixtures)

from nanocode_core.errors import StorageError, UserError
from nanocode_core.store import Files

NAMES = ("a.parquet", "b.jsonl", "c.jsonl.gz")


def write(folder: Path) -> None:
    """Three files of a thousand documents each."""
    folder.mkdir()
    texts = [[f"document {number} of {name}\n" * 40 for number in range(1000)] for name in NAMES]
    pq.write_table(pa.table({"text": texts[0]}), folder / "a.parquet", compression="none")
    lines = ["".join(json.dumps({"text": text}) + "\n" for text in part).encode() for part in texts]
    (folder / "b.jsonl").write_bytes(lines[1])
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(lines[2], mtime=0))


def section(place: str) -> dict:
    paths = [f"{place}/{name}" for name in NAMES]
    return {"sources": [{"kind": "files", "name": "mine", "content": "prose", "paths": paths}], "code_share": 0.0}


def content(out: Path) -> list[list[dict]]:
    return [pq.read_table(path).to_pylist() for path in sorted(out.rglob("*.parquet"))]


def test_files_on_gs_give_the_same_corpus(corpus, faulty: FaultProxy, tmp_path: Path) -> None:  # noqa: F811
    here, place = tmp_path / "files", f"gs://bucket/{tmp_path.name}"
    write(here)
    for name in NAMES:
        Files(place).upload(here / name, name)
    _, expected = corpus(section(str(here)), "here")
    faulty.faults = Faults(unavailable=0.05, reset=0.05, cut=0.1, short=0.8, in_a_row=2)
    _, out = corpus(section(place), "there")
    assert content(out) == content(expected)
    assert faulty.met["short"]


@pytest.mark.parametrize(("status", "said"), [(403, "has no permission to read object"), (404, "b.jsonl")])
def test_a_file_on_gs_that_cannot_be_had_is_named(
    corpus,
    faulty: FaultProxy,  # noqa: F811
    tmp_path: Path,
    status: int,
    said: str,
) -> None:
    here, place = tmp_path / "files", f"gs://bucket/{tmp_path.name}"
    write(here)
    for name in NAMES:
        Files(place).upload(here / name, name)
    faulty.refuse("GET .*/b.jsonl", status)
    with pytest.raises((UserError, StorageError), match=said) as caught:
        corpus(section(place))
    assert "b.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)
