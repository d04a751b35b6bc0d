import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanocode_core.data.permutation import batch_rows, permute, steps


@given(n=st.integers(1, 3_000), key=st.integers(0, 2**70))
def test_it_is_a_bijection(n: int, key: int):
    assert sorted(permute(np.arange(n), n, key)) == list(range(n))


@given(n=st.integers(1, 2**61), key=st.integers(0, 2**40), data=st.data())
def test_points_of_huge_domains_are_permuted_one_by_one(n: int, key: int, data: st.DataObject):
    index = np.array(data.draw(st.lists(st.integers(0, n - 1), unique=True, min_size=1, max_size=20)))
    out = permute(index, n, key)
    assert len(set(out.tolist())) == len(index)
    assert out.min() >= 0
    assert out.max() < n
    assert (permute(index[:1], n, key) == out[:1]).all()


def test_it_shuffles():
    out = permute(np.arange(10_000), 10_000, 5)
    assert abs(np.corrcoef(np.arange(10_000), out)[0, 1]) < 0.05
    assert abs(np.corrcoef(out[:-1], out[1:])[0, 1]) < 0.05
    assert np.mean(out == permute(np.arange(10_000), 10_000, 6)) < 0.01


@pytest.mark.parametrize("index", [[-1], [7], [0, 8]])
def test_an_index_out_of_range_is_an_error(index: list[int]):
    with pytest.raises(ValueError, match="out of range"):
        permute(np.array(index), 7, 0)


@settings(max_examples=50)
@given(n=st.integers(1, 60), batch=st.integers(1, 150), seed=st.integers(0, 2**33))
def test_no_row_is_lost_or_repeated_in_an_epoch(n: int, batch: int, seed: int):
    stream = np.concatenate([batch_rows(step, batch, n, seed) for step in range(3 * n // batch + 1)])
    for epoch in range(len(stream) // n):
        assert sorted(stream[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_epochs_and_seeds_have_orders_of_their_own():
    first, second = batch_rows(0, 100, 100, 0), batch_rows(1, 100, 100, 0)
    assert not (first == second).all()
    assert not (first == batch_rows(0, 100, 100, 1)).all()
    assert (second == batch_rows(1, 100, 100, 0)).all()


@pytest.mark.parametrize(("epochs", "expected"), [(1.0, 7), (0.5, 4), (2.1, 14), (0.001, 1)])
def test_steps_round_up(epochs: float, expected: int):
    assert steps(epochs, 15, 100) == expected
