import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanocode_core.config import load_config
from nanocode_core.data.build import build
from nanocode_core.data.rows import TokenRows
from nanocode_core.data.shards import id_type
from nanocode_core.errors import UserError
from nanocode_core.jobs.job import Job
from nanocode_core.tokenizer import Tokenizer
from nanocode_core.tokenizer.documents import documents, shards, texts, validation

SEQUENCE = 64


def job(corpus: Path, tokenizer: Path, place: Path, workers: int = 1) -> Job:
    config = load_config("smoke", overrides={"model": {"sequence": SEQUENCE}, "corpus": {"workers": workers}})
    (place / "out").mkdir(parents=True, exist_ok=True)
    inputs: Any = {"corpus": SimpleNamespace(path=corpus), "tokenizer": SimpleNamespace(path=tokenizer)}
    store: Any = None
    return Job("tokens", "0" * 16, config, inputs, place, place / "out", store)


def digests(folder: Path) -> dict[str, str]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def artifact(corpus: Path, tokenizer_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tokens")
    build(job(corpus, tokenizer_artifact, place))
    return place / "out"


def test_the_artifact_holds_the_corpus(corpus: Path, artifact: Path, tokenizer: Tokenizer):
    rows = TokenRows(artifact)
    everything = rows.take(np.arange(rows.count))
    assert everything.shape == (rows.facts["train"]["rows"], SEQUENCE + 1)
    assert everything.dtype == np.int32
    assert (everything[:, 0] == tokenizer.bos).all()
    train = rows.facts["train"]
    read = [document for shard in shards(corpus) for document in documents(shard)]
    assert train["documents"] == len(read)
    for name in ("s0", "s1"):
        mine = [document for document in read if document.source == name]
        assert train["sources"][name]["documents"] == len(mine)
        assert train["sources"][name]["bytes"] == sum(len(document.text.encode()) for document in mine)
        assert train["sources"][name]["tokens"] == sum(len(tokenizer.encode(document.text)) + 1 for document in mine)
    longest = max(read, key=lambda document: len(document.text))
    first_piece = [tokenizer.bos, *tokenizer.encode(longest.text)[:SEQUENCE]]
    assert (everything == first_piece).all(axis=1).any()


def test_validation_counts_every_byte_once(corpus: Path, artifact: Path, tokenizer: Tokenizer):
    rows = TokenRows(artifact)
    assert rows.sources == ("s0", "s1")
    for name, file in validation(corpus).items():
        windows = rows.validation(name)
        held_out = list(texts(file))
        targets = windows[:, 1:]
        size = sum(len(text.encode()) for text in held_out)
        assert tokenizer.token_bytes[targets].sum() == size == rows.facts["validation"][name]["bytes"]
        assert (windows[1:, 0] == windows[:-1, -1]).all()
        stream = [windows[0, 0], *targets.ravel()][: rows.facts["validation"][name]["tokens"]]
        assert tokenizer.decode(stream) == "".join("<|bos|>" + text for text in held_out)
        assert (rows.validation(name, tokens=3 * SEQUENCE + 5) == windows[:3]).all()
        assert len(rows.validation(name, tokens=1)) == 1


def test_batches_are_pure_and_cover_epochs(artifact: Path):
    rows, again = TokenRows(artifact), TokenRows(artifact)
    batch = 7
    seen = []
    for step in range(2 * rows.count // batch + 1):
        tokens = rows.batch(step, batch, seed=3)
        assert tokens.shape == (batch, SEQUENCE + 1)
        seen += rows.indices(step, batch, seed=3).tolist()
    assert (again.batch(step, batch, seed=3) == tokens).all()
    assert (rows.take(np.array(seen[-batch:])) == tokens).all()
    assert sorted(seen[: rows.count]) == sorted(seen[rows.count : 2 * rows.count]) == list(range(rows.count))
    assert not (rows.indices(0, batch, seed=3) == rows.indices(0, batch, seed=4)).all()


def test_take_reads_across_shards(artifact: Path):
    rows = TokenRows(artifact)
    raw = np.concatenate([np.fromfile(artifact / s["file"], rows.dtype) for s in rows.facts["train"]["shards"]])
    assert len(rows.facts["train"]["shards"]) == 4
    order = np.random.default_rng(0).permutation(rows.count)
    assert (rows.take(order) == raw.reshape(rows.count, -1)[order]).all()


def test_several_processes_write_the_same_bytes(corpus: Path, tokenizer_artifact: Path, artifact: Path, tmp_path: Path):
    metrics = build(job(corpus, tokenizer_artifact, tmp_path, workers=2))
    assert digests(tmp_path / "out") == digests(artifact)
    assert metrics["rows"] == TokenRows(artifact).count
    assert 0 < metrics["cropped_share"] < 0.2


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_and_started_again_it_ends_with_the_same_bytes(
    corpus: Path, tokenizer_artifact: Path, artifact: Path, tmp_path: Path, workers: int
):
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]);"
        "from test_tokens_build import build, job;"
        "build(job(*(Path(p) for p in sys.argv[2:5]), workers=int(sys.argv[5])))"
    )
    for attempt in range(5):  # on a busy machine the kill may come too late: then once more
        place = tmp_path / str(attempt)
        arguments = map(str, (Path(__file__).parent, corpus, tokenizer_artifact, place, workers))
        process = subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.DEVNULL)
        while process.poll() is None and not any((place / "facts").glob("*.json")):
            time.sleep(0.001)
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.kill()
        process.wait()
        _, alive = psutil.wait_procs(children, timeout=20)
        assert not alive, "a worker process outlived its parent"
        if not (place / "out" / "tokens.json").exists():
            break
    else:
        pytest.fail("the build always ended before it was killed")
    before = {file: file.stat().st_mtime_ns for file in (place / "facts").glob("*.json")}
    assert before
    build(job(corpus, tokenizer_artifact, place, workers=workers))
    assert {file: file.stat().st_mtime_ns for file in before} == before, "a finished shard was made again"
    assert digests(place / "out") == digests(artifact)


def test_a_corpus_too_small_for_a_row_is_the_users_error(tokenizer_artifact: Path, tmp_path: Path):
    for folder in ("train", "validation"):
        (tmp_path / folder).mkdir()
    table = pa.Table.from_pylist([{"text": "hi", "source": "s", "content": "prose"}])
    pq.write_table(table, tmp_path / "train" / "shard_00000.parquet")
    with pytest.raises(UserError, match=r"no row of 65 tokens.*corpus"):
        build(job(tmp_path, tokenizer_artifact, tmp_path / "work"))


def test_an_empty_validation_source_has_no_windows(corpus: Path, tokenizer_artifact: Path, tmp_path: Path):
    for folder in ("train", "validation"):
        (tmp_path / folder).mkdir()
    os.link(shards(corpus)[0], tmp_path / "train" / "shard_00000.parquet")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "validation" / "none.parquet")
    build(job(tmp_path, tokenizer_artifact, tmp_path / "work"))
    rows = TokenRows(tmp_path / "work" / "out")
    assert rows.validation("none").shape == (0, SEQUENCE + 1)
    assert json.loads((tmp_path / "work" / "out" / "tokens.json").read_text())["validation"]["none"]["bytes"] == 0


@pytest.mark.parametrize(("vocabulary", "name"), [(300, "<u2"), (65_536, "<u2"), (65_537, "<u4")])
def test_ids_take_the_smallest_type(vocabulary: int, name: str):
    assert id_type(vocabulary).str == name
