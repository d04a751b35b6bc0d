"""Your own files: what goes in comes out, and what can't go in is named."""

import gzip
import json
import string
import time

import pytest
from corpus_tables import rows, tree, write_parquet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanocode_core.config import load_config
from nanocode_core.corpus import files
from nanocode_core.corpus.identity import source_identity
from nanocode_core.corpus.text import clean, digest
from nanocode_core.corpus.units import Split, index_of
from nanocode_core.errors import UserError


def source(*paths, name="mine", **more):
    return {"kind": "files", "name": name, "content": "prose", "paths": list(map(str, paths)), **more}


def section(*sources, **more):
    return {"sources": list(sources), "code_share": 0, "characters": None, **more}


def only_unit(path):
    config = load_config("demo", overrides={"corpus": section(source(path))})
    (unit,) = files.units(config.corpus.sources[0])
    return unit


def words(number):
    return f"document {number} " + " ".join(string.ascii_lowercase[(number * k) % 26] * 3 for k in range(1, 30))


def write_lines(path, texts, key="text"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({key: text, "n": n}) + "\n" for n, text in enumerate(texts)))
    return path


def test_every_document_is_in_train_or_validation_in_the_order_of_its_file(corpus, tmp_path):
    texts = [words(n) for n in range(2_500)]
    write_parquet(tmp_path / "data" / "a.parquet", texts[:1_200], row_group_size=70)
    write_lines(tmp_path / "data" / "b.jsonl", texts[1_200:])
    metrics, out = corpus(section(source(tmp_path / "data" / "*"), validation_characters=10**9))
    train = [row["text"] for row in rows(out / "train")]
    held = {row["text"] for row in rows(out / "validation")}
    assert train == [text for text in texts if text not in held]
    assert set(train) | held == set(texts)
    assert 5 <= len(held) <= 60
    assert metrics == {"documents": len(train), "characters": sum(map(len, train)), "code_share": 0.0, "shards": 1}


def test_progress_is_a_few_lines(corpus, tmp_path, capsys):
    write_lines(tmp_path / "a.jsonl", [words(n) for n in range(2_000)])
    corpus(section(source(tmp_path / "a.jsonl")))
    assert 2 <= len(capsys.readouterr().out.splitlines()) <= 5


def test_a_url_gives_the_same_as_the_path(corpus, tmp_path):
    texts = [words(n) for n in range(300)]
    write_parquet(tmp_path / "data" / "a.parquet", texts[:150])
    (tmp_path / "data" / "b.jsonl.gz").write_bytes(
        gzip.compress("".join(json.dumps({"text": t}) + "\n" for t in texts[150:]).encode())
    )
    _, local = corpus(section(source(tmp_path / "data" / "*")), "local")
    _, remote = corpus(section(source(f"file://{tmp_path}/data/*")), "remote")
    assert tree(local) == tree(remote)


def test_copies_are_dropped_within_across_and_from_validation(corpus, tmp_path):
    texts = [words(n) for n in range(200)]
    write_lines(tmp_path / "a.jsonl", texts + texts[:50] + [text.replace(" ", "\n\n") for text in texts[:50]])
    write_lines(tmp_path / "b.jsonl", texts[100:] + [words(n) for n in range(1_000, 1_100)])
    sources = [source(tmp_path / "a.jsonl", name="a"), source(tmp_path / "b.jsonl", name="b")]
    _, out = corpus(section(*sources, validation_characters=10**9))
    digests = [digest(row["text"]) for row in rows(out / "train") + rows(out / "validation")]
    assert sorted(digests) == sorted({digest(words(n)) for n in [*range(200), *range(1_000, 1_100)]})


def test_any_prefix_has_the_code_share(corpus, tmp_path):
    write_lines(tmp_path / "code.jsonl", [f"x = {n}\n" * (1 + n % 7) for n in range(2_000)])
    write_lines(tmp_path / "prose.jsonl", [words(n) for n in range(2_000)])
    sources = [
        source(tmp_path / "prose.jsonl", name="p"),
        {**source(tmp_path / "code.jsonl", name="c"), "content": "code"},
    ]
    _, out = corpus(section(*sources, code_share=0.3, characters=60_000, shard_characters=20_000))
    total = code = 0
    for row in rows(out / "train"):
        total += len(row["text"])
        code += len(row["text"]) if row["content"] == "code" else 0
        assert abs(code - 0.3 * total) <= 200
    assert total == 60_000


def test_a_short_corpus_is_said_and_built(corpus, tmp_path, capsys):
    write_lines(tmp_path / "a.jsonl", [words(n) for n in range(20)])
    metrics, _ = corpus(section(source(tmp_path / "a.jsonl"), characters=10**6))
    assert 0 < metrics["characters"] < 10**6
    assert "run out of prose" in capsys.readouterr().out


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(), min_size=1, max_size=60), min_size=1, max_size=30))
def test_any_text_comes_back_unchanged(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("wild")
    write_lines(folder / "a.jsonl", texts)
    unit = files.units(
        load_config("demo", overrides={"corpus": section(source(folder / "a.jsonl"))}).corpus.sources[0]
    )[0]
    unit.make(folder)
    found = [row["text"] for row in rows(folder)]
    assert found == [clean(text) for text in texts]
    assert all(clean(text) == text for text in texts if text.isprintable())


def test_lone_surrogates_become_valid_text():
    assert clean("a\ud800b") == "a\ufffdb"
    assert clean("\ud83d\ude00") == "\U0001f600"


def test_one_document_at_least_is_for_validation(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", ["one", "two"])
    unit = only_unit(path)
    assert unit.split is Split.HASHED_ONE
    assert sorted(index_of(path, "text", unit.split, 0)["part"].tolist()) == [0, 1]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": oops}\n', "a.jsonl:2: not valid JSON"),
        ("a.jsonl", b'{"text": "\xff"}\n', "a.jsonl:1: not valid JSON"),
        ("a.jsonl", b'\n{"body": "x", "id": 1}\n', "a.jsonl:2: no key 'text', the object has 'body', 'id'"),
        ("a.jsonl", b'{"text": 5}\n', "a.jsonl:1: 'text' is a int, not text"),
        ("a.jsonl", b"[1]\n", "a.jsonl:1: a list instead of an object"),
        ("a.jsonl", b"[" * 100_000 + b"\n", "a.jsonl:1: "),
        ("a.jsonl", b"", "a.jsonl is empty"),
        ("a.parquet", b"PAR1 not really", "a.parquet is not a readable parquet file"),
        ("a.csv", b"text\nx\n", "a.csv is of no known kind"),
        ("a.jsonl.gz", b"not gzip", "a.jsonl.gz"),
    ],
)
def test_a_bad_file_is_named_in_one_line(corpus, tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        corpus(section(source(tmp_path / name)))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_column_lists_those_there_are(corpus, tmp_path):
    path = write_parquet(tmp_path / "a.parquet", ["x"], column="body")
    with pytest.raises(UserError, match=r"no column 'text'; it has 'body', 'other'"):
        corpus(section(source(path)))
    with pytest.raises(UserError, match=r"'other' holds int64, not text"):
        corpus(section(source(path, column="other")))


def test_a_damaged_parquet_file_is_named(corpus, tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [words(n) for n in range(5_000)])
    data = bytearray(path.read_bytes())
    data[100:2_000] = bytes(1_900)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.parquet"):
        corpus(section(source(path)))


def test_no_code_where_the_share_asks_for_it(corpus, tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [words(n) for n in range(50)])
    with pytest.raises(UserError, match="no source has content 'code'"):
        corpus(section(source(path), code_share=0.2))
    single = write_lines(tmp_path / "b.jsonl", ["only this"])
    with pytest.raises(UserError, match="no prose for training"):
        corpus(section(source(single)), "single")
    blank = write_lines(tmp_path / "c.jsonl", ["", "  "])
    with pytest.raises(UserError, match="'mine' has no document"):
        corpus(section(source(blank)), "blank")


class TestIdentity:
    def identity(self, *sources, **more):
        return source_identity(load_config("demo", overrides={"corpus": section(*sources, **more)}))

    def test_it_follows_the_content_of_the_files(self, tmp_path):
        path = write_lines(tmp_path / "a.jsonl", ["x"])
        first = self.identity(source(path))
        assert first["corpus.files.mine"][0]["path"] == str(path)
        assert self.identity(source(path)) == first
        path.write_text(path.read_text().replace("x", "y"))
        assert self.identity(source(path)) != first

    def test_a_glob_without_files_is_named(self):
        with pytest.raises(UserError, match=r"no file matches 'nowhere/\*\.parquet'"):
            self.identity(source("nowhere/*.parquet"))

    def test_python_counts_version_and_packages_and_is_quick(self):
        started = time.process_time()
        found = source_identity(load_config("demo"))
        assert time.process_time() - started < 1
        assert list(found) == ["corpus.python"]
        assert json.loads(json.dumps(found)) == found

    def test_content_that_is_asked_for_and_not_there_fails_before_anything_is_built(self, tmp_path):
        path = write_lines(tmp_path / "a.jsonl", ["x"])
        with pytest.raises(UserError, match="'code'"):
            self.identity(source(path), code_share=0.5)


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        ([source("a"), source("b")], "two sources are named 'mine'"),
        ([source("a", name="../a")], "name"),
        ([source(name="x")], "paths"),
        ([{"kind": "hub", "name": "h", "content": "prose", "repo": "a/b/../c"}], "repo"),
    ],
)
def test_a_source_that_makes_no_sense_is_refused_with_the_config(sources, said):
    with pytest.raises(UserError, match="sources") as caught:
        load_config("demo", overrides={"corpus": section(*sources)})
    assert said in str(caught.value)
