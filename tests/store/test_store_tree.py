import pytest
from store_helpers import put

from nanocode_core.errors import UserError
from nanocode_core.store import Store
from nanocode_core.store.tree import ABSENT, diff_config, input_tree, resolve, resolve_key, rows


@pytest.fixture
def chain(store):
    """corpus aa11 -> tokenizer bb22 -> tokens cc33 (of both), and a second corpus aa99."""
    corpus = put(store, "corpus", "aa11", finished=1.0)
    tokenizer = put(store, "tokenizer", "bb22", inputs={"corpus": corpus}, finished=2.0, metrics={"ratio": 4.5})
    tokens = put(store, "tokens", "cc33", inputs={"corpus": corpus, "tokenizer": tokenizer}, finished=3.0)
    put(store, "corpus", "aa99", finished=4.0)
    return tokens


def test_rows_list_all_oldest_first_and_show_what_cannot_be_read(store, chain):
    store.files.write("artifacts/dpo/dd44/artifact.json", b"{")
    listing = rows(store)
    assert [(row.stage, row.fingerprint) for row in listing] == [
        ("dpo", "dd44"),
        ("corpus", "aa11"),
        ("tokenizer", "bb22"),
        ("tokens", "cc33"),
        ("corpus", "aa99"),
    ]
    assert "not a valid record" in listing[0].problem
    row = listing[2]
    assert (row.created, row.minutes, row.size, row.metrics, row.problem) == (2.0, 0.5, 3015, {"ratio": 4.5}, None)
    assert [row.fingerprint for row in rows(store, "corpus")] == ["aa11", "aa99"]


def test_the_tree_follows_the_inputs_and_marks_what_is_gone(store, chain):
    tree = input_tree(store, chain)
    assert [(node.name, node.fingerprint) for node in tree.inputs] == [("corpus", "aa11"), ("tokenizer", "bb22")]
    assert tree.inputs[1].inputs[0].record == store.record("corpus", "aa11")
    store.remove("corpus", "aa11")
    store.files.write("artifacts/tokenizer/bb22/artifact.json", b"{")
    corpus, tokenizer = input_tree(store, chain).inputs
    assert (corpus.record, corpus.problem) == (None, "not in the store")
    assert tokenizer.record is None
    assert "not a valid record" in tokenizer.problem


def test_a_difference_names_field_old_and_new(store):
    record = put(store, config={"a": 1, "b": [1, 2], "c": None, "gone": "x", "flag": True})
    now = {"a": 1.0, "b": (1, 2), "c": 0, "flag": 1, "new": {"k": 1}}
    assert diff_config(record, now) == [
        ("c", None, 0),
        ("flag", True, 1),
        ("gone", "x", ABSENT),
        ("new", ABSENT, {"k": 1}),
    ]
    assert diff_config(record, record.config) == []


@pytest.mark.parametrize(
    ("reference", "key"),
    [
        ("tokens", ("tokens", "cc33")),
        ("tokens/newest", ("tokens", "cc33")),
        ("corpus/newest", ("corpus", "aa99")),
        ("corpus/aa11", ("corpus", "aa11")),
        ("corpus/aa1", ("corpus", "aa11")),
        ("aa9", ("corpus", "aa99")),
        (" bb22…", ("tokenizer", "bb22")),
    ],
)
def test_references(store, chain, reference, key):
    assert resolve_key(store, reference) == key
    assert resolve(store, reference).key == key


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("corpus/aa", "'corpus/aa' is ambiguous: corpus/aa11, corpus/aa99; for the last one write corpus/newest"),
        ("aa", "'aa' is ambiguous: corpus/aa11, corpus/aa99"),
        ("zz", "no artifact 'zz' in"),
        ("corpus/zz", "no artifact 'corpus/zz' in"),
        ("nope/aa11", "no 'nope' artifacts in .*; there are corpus, tokenizer, tokens"),
        ("", "no artifact '' in"),
        ("../..", "no '..' artifacts in"),
    ],
)
def test_references_that_do_not_name_one(store, chain, reference, message):
    with pytest.raises(UserError, match=message):
        resolve(store, reference)


def test_a_stage_alone_reads_the_newest_but_names_none_for_removal(store, chain):
    assert resolve(store, "corpus").fingerprint == "aa99"
    with pytest.raises(UserError, match="ambiguous"):
        resolve_key(store, "corpus")


def test_what_cannot_be_read_can_be_named_for_removal(store):
    store.files.write("artifacts/dpo/dd44/artifact.json", b"{")
    assert resolve_key(store, "dd44") == ("dpo", "dd44")


def test_an_empty_store_says_so(tmp_path):
    with pytest.raises(UserError, match="no artifacts in"):
        resolve(Store(str(tmp_path)), "dpo")
