import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanocode_core.errors import CorruptArtifact, UserError
from nanocode_core.store.records import FileEntry, Record, digest, fingerprint, parse_record

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(), v, max_size=4))
IDENTITIES = st.dictionaries(st.text(), VALUES, max_size=6)


def turned(value):
    """The same value with every mapping's keys in reverse order and every list as a tuple."""
    if isinstance(value, dict):
        return {key: turned(value[key]) for key in reversed(value)}
    return tuple(turned(inner) for inner in value) if isinstance(value, list) else value


@given(IDENTITIES, st.dictionaries(st.text(), st.text(), max_size=3))
def test_a_fingerprint_depends_on_values_alone(identity, inputs):
    key = fingerprint("sft", 1, identity, inputs)
    assert len(key) == 16
    assert int(key, 16) >= 0
    assert key == fingerprint("sft", 1, turned(identity), dict(reversed(inputs.items())))
    assert key == fingerprint("sft", 1, json.loads(json.dumps(identity)), inputs)


@given(IDENTITIES, st.text(), SCALARS)
def test_every_part_counts(identity, name, value):
    key = fingerprint("sft", 1, identity, {})
    others = {
        fingerprint("dpo", 1, identity, {}),
        fingerprint("sft", 2, identity, {}),
        fingerprint("sft", 1, identity, {"tokens": "ab12"}),
        fingerprint("sft", 1, {**identity, name + "new": [value]}, {}),
    }
    assert key not in others
    assert len(others) == 4


@given(st.integers(-(2**53) + 1, 2**53 - 1))
def test_a_whole_float_equals_its_integer(number):
    assert fingerprint("s", 1, {"x": number}, {}) == fingerprint("s", 1, {"x": float(number)}, {})


def test_look_alikes_differ():
    alike = [1, True, "1", None, "null", [1], [[1]], {"1": 1}, 1.5, "é", "e\u0301", "\ud800", 0, False, ""]
    assert len({fingerprint("s", 1, {"x": value}, {}) for value in alike}) == len(alike)


def test_fingerprints_stay_what_they_are():
    # A store outlives versions of this program: a changed recipe would orphan every artifact in it.
    assert fingerprint("corpus", 1, {"seed": 0, "rate": 0.5, "name": "é"}, {"a": "b"}) == "da464c58b10de6e9"


@pytest.mark.parametrize("value", [math.nan, math.inf, object(), {1: 2}, b"x", {1}])
def test_what_json_cannot_say_has_no_fingerprint(value):
    with pytest.raises((TypeError, ValueError)):
        fingerprint("s", 1, {"x": value}, {})


def entry(character, size=1):
    return FileEntry(size=size, sha256=character * 64)


def test_the_digest_covers_contents_and_names_but_not_logs_and_order():
    files = {"a": entry("a"), "b/c": entry("b"), "logs/metrics.jsonl": entry("c")}
    same = {"logs/metrics.jsonl": entry("d", 9), "logs/more": entry("e"), "b/c": entry("b"), "a": entry("a")}
    assert digest(files) == digest(same)
    assert digest(files) != digest({**files, "a": entry("f")})
    assert digest(files) != digest({**files, "log": entry("f")})
    assert digest({"a": entry("a"), "b": entry("b")}) != digest({"a": entry("b"), "b": entry("a")})


def a_record(**changes):
    files = {"a": entry("a")}
    values = {
        "stage": "corpus",
        "version": 1,
        "fingerprint": "ab12",
        "digest": digest(files),
        "config": {"seed": 0},
        "inputs": {},
        "files": files,
        "metrics": {"loss": 1.5},
        "provenance": {"finished": 12.5},
    }
    return Record(**{**values, **changes})


def test_a_record_survives_its_file():
    record = a_record()
    assert parse_record(record.to_json(), "corpus", "ab12") == record


def changed(**changes):
    return json.dumps({**json.loads(a_record().to_json()), **changes}).encode()


def test_a_newer_record_says_what_to_do():
    with pytest.raises(UserError) as caught:
        parse_record(changed(format=2, digest="another scheme"), "corpus", "ab12")
    assert not isinstance(caught.value, CorruptArtifact)
    assert str(caught.value) == (
        "artifact corpus/ab12 was written by a newer nanocode (format 2, this one reads 1); "
        "upgrade, or remove it with `nanocode artifacts rm corpus/ab12`"
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"{}",
        b'{"format": 1}',
        a_record().to_json()[:-20],
        changed(format=0),
        changed(format="2"),
        changed(format=None),
        changed(format=True),
        changed(stage="dpo"),
        changed(digest="0" * 64),
        changed(files={"../../etc/passwd": {"size": 1, "sha256": "a" * 64}}),
        changed(files={"a": {"size": 1, "sha256": "short"}}),
        changed(folder="../x"),
        b"[" * 100_000,
    ],
)
def test_an_invalid_record_names_the_file_and_the_remedy(data):
    with pytest.raises(CorruptArtifact) as caught:
        parse_record(data, "corpus", "ab12")
    text = str(caught.value)
    assert "artifact.json is not a valid record" in text
    assert "`nanocode artifacts rm corpus/ab12`" in text
    assert "\n" not in text
