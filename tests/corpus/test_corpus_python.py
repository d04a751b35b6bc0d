"""The embedded source, on the real interpreter."""

import json

import pyarrow.parquet as pq
import pytest
from corpus_tables import rows, tree

from nanocode_core.config import load_config
from nanocode_core.config.model import PythonSource
from nanocode_core.corpus import docstrings, python
from nanocode_core.corpus.build import build
from nanocode_core.corpus.text import digest
from nanocode_core.corpus.units import Split
from nanocode_core.errors import UserError
from nanocode_core.jobs.job import Job

LONG = '"""' + "x" * 300 + '"""'
SMALL = {"characters": 400_000, "validation_characters": 20_000, "shard_characters": 150_000}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small corpus of this interpreter, built once for all tests here."""

    def run(workers, seed=0):
        work = tmp_path_factory.mktemp("python")
        (work / "out").mkdir()
        config = load_config("demo", overrides={"seed": seed, "corpus": {**SMALL, "workers": workers}})
        return build(Job("corpus", "0" * 16, config, {}, work, work / "out", None)), work / "out"

    return run


@pytest.fixture(scope="module")
def built(small):
    return small(workers=1)


def test_it_has_the_size_and_the_code_share_asked_for(built):
    metrics, out = built
    assert metrics["characters"] == 400_000
    assert metrics["code_share"] == pytest.approx(0.2, abs=0.1)
    train = rows(out / "train")
    assert sum(len(row["text"]) for row in train) == 400_000
    assert len(train) == metrics["documents"]
    assert len(list((out / "train").iterdir())) == metrics["shards"] == 3


def test_corpus_json_says_what_the_shards_hold(built):
    _, out = built
    table = json.loads((out / "corpus.json").read_text())
    train = rows(out / "train")
    for name, source in table["sources"].items():
        texts = [row["text"] for row in train if row["source"] == name]
        held = [row["text"] for row in rows_of(out, name)]
        for part, found in (("train", texts), ("validation", held)):
            assert source[part] == {
                "documents": len(found),
                "characters": sum(map(len, found)),
                "bytes": sum(len(text.encode()) for text in found),
            }
        assert {row["content"] for row in train if row["source"] == name} == {source["content"]}
        assert source["validation"]["characters"] == 20_000
    assert table["bytes"] == sum(source["train"]["bytes"] for source in table["sources"].values())


def rows_of(out, name):
    return pq.read_table(out / "validation" / f"{name}.parquet").to_pylist()


def test_no_document_comes_twice_nor_from_validation(built):
    _, out = built
    digests = [digest(row["text"]) for row in rows(out / "train") + rows(out / "validation")]
    assert len(digests) == len(set(digests))


def test_code_is_whole_modules_and_prose_is_words(built):
    _, out = built
    train = rows(out / "train")[:-1]  # the last one is cut
    code = [row["text"] for row in train if row["content"] == "code"]
    prose = [row["text"] for row in train if row["content"] == "prose"]
    assert code
    assert all(docstrings.is_code(text) for text in code)
    assert sum("def " in text or "import " in text for text in code) > 0.8 * len(code)
    assert sum(docstrings.is_prose(text) for text in prose) > 0.9 * len(prose)  # help topics are not filtered


def test_the_number_of_workers_changes_no_byte(built, small):
    assert tree(small(workers=2)[1]) == tree(built[1])


def test_another_seed_takes_other_documents(built, small):
    assert tree(small(workers=1, seed=1)[1]) != tree(built[1])


def test_a_modules_code_and_docstrings_are_on_the_same_side():
    sides = {}
    for content in ("code", "prose"):
        for unit in python.units(PythonSource(name=content, content=content), seed=3):
            for item in unit.items:
                if item.name.endswith(".py"):
                    sides.setdefault(item.name, set()).add(unit.split)
    assert len(sides) > 1_000
    assert all(len(side) == 1 for side in sides.values())
    assert 0.01 < sum(side == {Split.ALL} for side in sides.values()) / len(sides) < 0.03


def test_nanocode_itself_is_no_source():
    names = [name for name, _ in python.distributions()]
    assert "numpy" in names
    assert "nanocode" not in names
    units = python.units(PythonSource(name="c", content="code"), seed=0)
    assert not [item for unit in units for item in unit.items if "nanocode_core" in item.name]


def test_docstrings_stand_under_the_names_of_their_objects():
    source = '''"""Reads a thing, and says at some length what it is that it reads, and from where."""

class Thing:
    """A thing."""

    def read(self):
        """Read it:

        first
            then
        """

    def again(self):
        """A thing."""

async def fetch():
    """Fetch it over the network, which takes its time, and is why this one is asynchronous: it waits."""
'''
    assert docstrings.docstrings(source, "a.b") == (
        "# a.b\n\nReads a thing, and says at some length what it is that it reads, and from where.\n\n"
        "## Thing\n\nA thing.\n\n"
        "## Thing.read\n\nRead it:\n\nfirst\n    then\n\n"
        "## fetch\n\nFetch it over the network, which takes its time, and is why this one is asynchronous: it waits.\n"
    )


@pytest.mark.parametrize(
    "source", ["def broken(:\n" + '"""' + "x" * 300 + '"""', "\0" + '"""' + "x" * 300 + '"""', "x = 1\n"]
)
def test_what_has_no_docstrings_gives_none(source):
    assert docstrings.docstrings(source, "m") is None


def test_another_python_than_the_one_that_planned_the_run_builds_no_corpus(tmp_path):
    config = load_config("smoke", [f"run.cache={tmp_path / 'cache'}"])
    planned = {"corpus.python": {"version": "3.11.2", "packages": "another"}}
    job = Job("corpus", "0" * 16, config, {}, tmp_path, tmp_path / "out", None, identity=planned)
    with pytest.raises(UserError, match=r"start the run in the cluster .* or set corpus\.sources"):
        build(job)
    assert not (tmp_path / "out").exists()
