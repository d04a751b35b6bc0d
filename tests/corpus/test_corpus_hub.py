"""Hub data sets, from a server that fails in every way a network does."""

import hashlib
import io
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus_tables import rows, tree

from nanocode_core.corpus import hub
from nanocode_core.corpus.download import Retry
from nanocode_core.errors import UserError

REPO = "someone/texts"


def shard(number, documents=400):
    buffer = io.BytesIO()
    texts = [
        f"shard {number} document {n} " + hashlib.sha256(f"{number}/{n}".encode()).hexdigest() for n in range(documents)
    ]
    pq.write_table(pa.table({"text": texts}), buffer)
    return buffer.getvalue()


FILES = {"README.md": b"about", **{f"data/shard_{n:05d}.parquet": shard(n) for n in range(4)}}
FIRST = "data/shard_00000.parquet"


def section(**more):
    source = {"kind": "hub", "name": "texts", "content": "prose", "repo": REPO, "pattern": "data/*.parquet"}
    return {
        "sources": [{**source, "shards": 3, **more}],
        "code_share": 0,
        "characters": None,
        "validation_characters": 10**6,
    }


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """Short pauses, and no token of the person who runs the tests."""
    monkeypatch.setattr(hub, "RETRY", Retry(tries=4, seconds=0.01))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


def test_the_last_file_is_validation_the_others_training(corpus, serve):
    serve(REPO, FILES)
    _, out = corpus(section())
    assert {row["text"].split()[1] for row in rows(out / "train")} == {"0", "1"}
    assert {row["text"].split()[1] for row in rows(out / "validation")} == {"2"}
    assert len(rows(out / "train")) == 800


def test_a_single_file_gives_both(corpus, serve):
    serve(REPO, FILES)
    _, out = corpus(section(shards=1))
    assert len(rows(out / "train")) + len(rows(out / "validation")) == 400
    assert rows(out / "validation")


@pytest.mark.parametrize(
    "fault",
    [["503", "503"], ["reset", "reset"], ["truncated"] * 6, ["wrong"], ["wrong", "truncated", "503", "reset"]],
    ids="-".join,
)
def test_what_passes_does_no_harm(corpus, serve, tmp_path, fault):
    serve(REPO, FILES)
    _, healthy = corpus(section(), "healthy")
    shutil.rmtree(tmp_path / "cache")
    server = serve(REPO, FILES)
    server.faults[FIRST] = list(fault)
    server.faults[f"/api/datasets/{REPO}/revision/main"] = [kind for kind in fault if kind in ("503", "reset")]
    _, faulty = corpus(section(), "faulty")
    assert tree(faulty) == tree(healthy)
    assert not any(server.faults.values())


def test_a_truncated_download_goes_on_where_it_ended(corpus, serve):
    server = serve(REPO, FILES)
    server.faults[FIRST] = ["truncated"]
    corpus(section())
    first, second = server.bytes_sent(FIRST)
    assert first + second == len(FILES[FIRST])


def test_a_killed_download_goes_on_where_it_ended(corpus, serve, tmp_path):
    server = serve(REPO, FILES)
    corpus(section(), "before")
    (cached,) = (tmp_path / "cache").rglob("shard_00000.parquet")
    cached.rename(cached.with_name(cached.name + ".part"))
    with cached.with_name(cached.name + ".part").open("r+b") as file:
        file.truncate(1_000)
    corpus(section(), "after")
    assert server.bytes_sent(FIRST) == [len(FILES[FIRST]), len(FILES[FIRST]) - 1_000]


def test_the_cache_is_used_and_a_damaged_file_in_it_replaced(corpus, serve, tmp_path):
    server = serve(REPO, FILES)
    _, before = corpus(section(), "before")
    asked = len(server.requests)
    corpus(section(), "again")
    assert len(server.requests) == asked
    (cached,) = (tmp_path / "cache").rglob("shard_00000.parquet")
    data = bytearray(cached.read_bytes())
    data[len(data) // 2] ^= 1
    cached.write_bytes(data)
    _, after = corpus(section(), "after")
    assert tree(after) == tree(before)
    assert [name for name, _ in server.requests[asked:]] == [FIRST]


def test_a_restart_keeps_to_the_commit_of_the_first_start(corpus, serve):
    server = serve(REPO, FILES)
    corpus(section(), "job")
    server.files = {**FILES, "data/a.parquet": shard(9)}
    _, out = corpus(section(), "job")
    assert {row["text"].split()[1] for row in rows(out / "train")} == {"0", "1"}


def said(corpus, **more):
    with pytest.raises(UserError) as caught:
        corpus(section(**more))
    text = str(caught.value)
    assert "\n" not in text
    assert "corpus source 'texts'" in text
    return text


def test_no_network_is_one_line(corpus, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://somebody:secret@127.0.0.1:9")
    text = said(corpus)
    assert "cannot reach the hub at http://127.0.0.1:9" in text
    assert "check the network or HF_ENDPOINT, or use a `files` source" in text


def test_offline_mode_is_honoured(corpus, serve, monkeypatch):
    server = serve(REPO, FILES)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in said(corpus)
    assert not server.requests


def test_offline_mode_can_use_what_is_in_the_cache(corpus, serve, monkeypatch):
    server = serve(REPO, FILES)
    _, before = corpus(section(), "job")
    server.close()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    _, after = corpus(section(), "job")
    assert tree(before) == tree(after)


def test_what_never_passes_is_one_line(corpus, serve):
    serve(REPO, FILES).faults[FIRST] = ["503"] * 50
    assert "HTTP 503" in said(corpus)
    serve(REPO, FILES).faults[FIRST] = ["truncated", "wrong"] * 50
    assert "checksum" in said(corpus)


def test_unknown_names_are_said(corpus, serve):
    serve(REPO, FILES)
    assert "has no dataset someone/else@main" in said(corpus, repo="someone/else")
    assert "has no dataset someone/texts@v9" in said(corpus, revision="v9")
    assert "0 files of someone/texts match 'x*'" in said(corpus, pattern="x*")


def test_too_few_files_are_said(corpus, serve):
    serve(REPO, FILES)
    assert "4 files of someone/texts match" in said(corpus, shards=5)


def test_the_token_goes_to_the_hub_and_nowhere_else(corpus, serve, monkeypatch, tmp_path, capfd):
    server = serve(REPO, FILES)
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    server.faults[FIRST] = ["503", "wrong"]
    corpus(section())
    assert server.authorization == "Bearer hf_verysecret"
    shown = capfd.readouterr()
    assert "verysecret" not in shown.out + shown.err
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"verysecret" in path.read_bytes()]
