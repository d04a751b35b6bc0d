"""Chips are found by the names that people and JAX give them."""

import pytest

from nanocode_core.config.chips import CHIPS, dollars, find_chip, utilization


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("v6e", "v6e"),
        ("TPU v6 lite", "v6e"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("cpu", "cpu"),
    ],
)
def test_a_chip_is_found_by_name_and_by_device_kind(kind: str, name: str) -> None:
    chip = find_chip(kind)
    assert chip is not None
    assert chip.name == name


def test_an_unknown_chip_is_none() -> None:
    assert find_chip("TPU v99") is None
    assert find_chip("") is None


def test_the_headline_of_the_original_comes_out_of_the_table() -> None:
    """d24 of the original: $200 for 9.3 h on 8 chips of v6e."""
    chip = find_chip("v6e")
    assert chip is not None
    assert dollars(9.3 * 60, chip, chips=8) == pytest.approx(200, rel=0.01)
    assert utilization(918e12 * 4, chip, chips=8) == pytest.approx(0.5)


def test_what_is_not_known_is_none() -> None:
    cpu = find_chip("cpu")
    assert cpu is not None
    assert utilization(1e12, cpu) is None
    assert dollars(60, cpu) is None


def test_spot_is_cheaper_than_on_demand() -> None:
    for chip in CHIPS:
        if chip.price is not None:
            assert chip.price.spot is None or chip.price.spot < chip.price.on_demand
            assert chip.price.date
