import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanocode_core.evals.rates import rate, rounded, share
from nanocode_core.evals.saved import resumed


class Work:
    """Squares numbers, counting how often; dies before the numbers it is told to."""

    def __init__(self, die_at=()):
        self.done, self.die_at = [], set(die_at)

    def __call__(self, number):
        if number in self.die_at:
            raise KeyboardInterrupt
        self.done.append(number)
        return {"square": number * number / 3}


@given(
    count=st.integers(0, 8),
    dies=st.lists(st.integers(0, 7), max_size=3),
    rubbish=st.sampled_from([b"", b"{", b'{"square": 1', b'{"square": 1}x']),
)
def test_pieces_are_computed_once_however_often_it_dies(tmp_path_factory, count, dies, rubbish):
    path = tmp_path_factory.mktemp("saved") / "work" / "pieces.jsonl"
    computed = []
    for die_at in [*dies, 100]:
        work = Work([die_at])
        values = []
        try:
            values.extend(resumed(path, range(count), work))
        except KeyboardInterrupt:
            path.open("ab").write(rubbish)
        computed += work.done
    assert computed == list(range(count))
    assert values == [{"square": number * number / 3} for number in range(count)]
    assert [json.loads(line) for line in path.read_bytes().splitlines()] == values if count else True


def test_rates_keep_their_counts():
    assert rate(1, 3) == {"rate": 0.333333, "count": 1, "of": 3}
    assert share([]) == {"rate": None, "count": 0, "of": 0}
    assert rounded({"a": [1 / 3, 2], "b": (0.1234567,)}) == {"a": [0.333333, 2], "b": [0.123457]}


@pytest.mark.parametrize("broken", [b"\xff\n", b"no json\n"])
def test_a_whole_line_that_is_no_json_is_not_passed_over(tmp_path, broken):
    (tmp_path / "p").write_bytes(broken)
    with pytest.raises(ValueError):  # noqa: PT011 -- json's and the codec's errors share only this
        list(resumed(tmp_path / "p", range(2), Work()))
