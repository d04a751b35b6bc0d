"""The mixture as a pure function."""

from hypothesis import given
from hypothesis import strategies as st

from nanocode_core.corpus.mixture import Document, Mixture, distinct, take

sizes = st.lists(st.integers(1, 50), min_size=0, max_size=60)
several = st.lists(st.tuples(st.sampled_from(["code", "prose"]), sizes), min_size=1, max_size=4)


def stream(label, numbers):
    return [Document(0, row, f"{label}/{row}".encode(), size, size) for row, size in enumerate(numbers)]


@given(several, st.floats(0, 1), st.integers(1, 2_000))
def test_share_limit_and_order_hold_for_any_sources(sources, share, limit):
    contents = tuple(content for content, _ in sources)
    streams = [stream(number, numbers) for number, (_, numbers) in enumerate(sources)]
    mixture = Mixture(contents, share, limit)
    picks = list(mixture.picks(streams, set()))
    total = code = 0
    for pick in picks:
        total += pick.characters
        code += pick.characters if contents[pick.source] == "code" else 0
        assert abs(code - share * total) <= 50
    assert total <= limit
    assert (total == limit) == (mixture.ended is None)
    assert sum(mixture.given.values()) == total
    for number, documents in enumerate(streams):
        taken = [pick.document for pick in picks if pick.source == number]
        assert taken == documents[: len(taken)]
    assert all(pick.characters == pick.document.characters for pick in picks[:-1])


@given(sizes, sizes, st.sets(st.integers(0, 20)))
def test_no_digest_comes_twice_nor_one_that_was_seen(first, second, seen):
    known = {f"a/{row}".encode() for row in seen}
    streams = [stream("a", first), stream("a", second)]
    picks = list(Mixture(("prose", "prose"), 0, None).picks(streams, set(known)))
    digests = [pick.document.digest for pick in picks]
    assert len(digests) == len(set(digests))
    assert set(digests) == {d.digest for documents in streams for d in documents} - known


def test_sources_of_a_content_take_turns_until_one_is_used_up():
    streams = [stream("a", [10] * 3), stream("b", [10] * 6)]
    picks = list(Mixture(("prose", "prose"), 0, None).picks(streams, set()))
    assert [pick.source for pick in picks] == [0, 1, 0, 1, 0, 1, 1, 1, 1]


@given(sizes, st.integers(1, 500))
def test_take_cuts_the_last_document(numbers, limit):
    picks = list(take(distinct(stream("a", numbers), set()), limit))
    assert sum(pick.characters for pick in picks) == min(limit, sum(numbers))
