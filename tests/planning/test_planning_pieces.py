"""Names of accelerators, prices, the search for what fits, the compiler's errors, and kept answers."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanocode_core.config.chips import dollars, find_chip, load_prices
from nanocode_core.errors import UserError
from nanocode_core.planning.accelerators import accelerators, find_accelerator
from nanocode_core.planning.assumptions import assumed_mfu
from nanocode_core.planning.cache import Cache
from nanocode_core.planning.fit import divisors, largest_fit
from nanocode_core.planning.protocol import Mesh, Outcome


def outcome(fits: bool, peak: int = 0) -> Outcome:
    return Outcome(fits, peak, 100, "", {}, {}, 0.0, "")


@pytest.mark.parametrize(
    ("name", "chips", "devices", "hosts", "topology"),
    [
        ("v6e-8", 8, 8, 1, "v6e:2x4"),
        ("v6e-256", 256, 256, 64, "v6e:16x16"),
        ("V5E-16", 16, 16, 4, "v5e:4x4"),
        ("v5p-8", 4, 4, 1, "v5p:2x2x1"),
        ("tpu7x-8", 4, 8, 1, "tpu7x:2x2x1"),
        ("h100-8", 8, 8, 1, None),
        ("h200-1", 1, 1, 1, None),
        ("cpu", 1, 1, 1, None),
    ],
)
def test_a_name_says_chips_devices_hosts_and_topology(
    name: str, chips: int, devices: int, hosts: int, topology: str | None
) -> None:
    one = find_accelerator(name)
    assert (one.chips, one.devices, one.hosts, one.topology) == (chips, devices, hosts, topology)


@pytest.mark.parametrize("name", accelerators())
def test_hosts_hold_all_chips_of_a_slice(name: str) -> None:
    one = find_accelerator(name)
    if one.platform != "tpu":
        return
    assert one.topology is not None
    assert one.host_bounds is not None
    assert math.prod(map(int, one.topology.partition(":")[2].split("x"))) == one.chips
    assert one.hosts * math.prod(one.host_bounds) == one.chips


@pytest.mark.parametrize(
    ("name", "nearest"), [("v6e-9", "v6e-8, v6e-16"), ("v6", "v6e-8"), ("h10-8", "h100-8"), ("tpu", "tpu7x-8")]
)
def test_an_unknown_accelerator_names_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UserError) as error:
        find_accelerator(name)
    assert nearest in str(error.value)
    assert "\n" not in str(error.value)


@given(share=st.integers(1, 600), most=st.integers(0, 700), data=st.data())
def test_the_search_finds_the_most_that_fits_with_few_compilations(share: int, most: int, data: st.DataObject) -> None:
    sizes = divisors(share)
    first = data.draw(st.sampled_from([*sizes, None]))
    asked: list[int] = []

    def compile_at(size: int) -> Outcome:
        asked.append(size)
        return outcome(size <= most, size)

    fit = largest_fit(sizes, compile_at, first)
    assert fit.micro == max((size for size in sizes if size <= most), default=None)
    assert fit.outcome.peak == (fit.micro or 1)
    assert sorted(asked) == [size for size, _ in fit.tried]
    assert len(asked) <= math.log2(len(sizes)) + 2


@pytest.mark.parametrize(
    ("message", "needed", "available"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (22.51G) "
            "exceeds available HBM (15.75G).",
            22.51,
            15.75,
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 40.10G "
            "of 31.25G hbm. Exceeded hbm capacity by 8.85G.\nTotal hbm usage >= 40.10G:\n",
            40.10,
            31.25,
        ),
    ],
)
def test_out_of_memory_is_read_as_figures(message: str, needed: float, available: float) -> None:
    from nanocode_core.planning.step import parse_too_large

    found = parse_too_large(message)
    assert found is not None
    assert found[0] == pytest.approx(needed * 2**30, rel=1e-6)
    assert found[1] == pytest.approx(available * 2**30, rel=1e-6)
    assert found[2] == message.splitlines()[0]


def test_another_error_is_not_taken_for_out_of_memory() -> None:
    from nanocode_core.planning.step import parse_too_large

    assert parse_too_large("INTERNAL: Mosaic failed to compile: Scoped allocation with size 84.65M") is None


def test_kept_answers_outlive_the_process_and_a_broken_file_is_a_miss(tmp_path: Path) -> None:
    kept = Cache(tmp_path)
    assert kept.program("ab") is None
    kept.keep_program("ab", {"fits": True})
    kept.keep_request("key", "ab")
    again = Cache(tmp_path)
    assert again.program("ab") == again.request("key") == {"fits": True}
    assert again.request("other") is None
    (tmp_path / "programs" / "ab.json").write_text('{"fits": ')
    assert again.program("ab") is None
    assert again.request("key") is None


def test_mfu_is_the_stated_one_or_that_of_the_nearest_size() -> None:
    here, elsewhere = find_accelerator("v6e-8"), find_accelerator("h100-8")
    assert assumed_mfu(10_066_329_600, here, None)[0] == 0.525
    assert assumed_mfu(3_000_000_000, here, None)[0] == 0.452
    assert assumed_mfu(10_066_329_600, here, 0.3)[0] == 0.3
    assert "not measured" in assumed_mfu(10_066_329_600, elsewhere, None)[1].source


def test_a_mesh_is_told_by_what_is_spread() -> None:
    assert str(Mesh(8)) == "data 8"
    assert str(Mesh(4, 2)) == "data 4 x fsdp 2"
    assert str(Mesh(1)) == "one device"


def test_prices_of_a_file_are_laid_over_the_package_s(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[h200]\non_demand = 4.5\ndate = "2027-01"\nsource = "my contract"\n')
    prices, chip = load_prices(path), find_chip("h200")
    assert chip is not None
    assert prices["H200"].date == "2027-01"
    assert prices["v6e"].on_demand == load_prices()["v6e"].on_demand
    assert dollars(60, chip, 2, prices=prices) == pytest.approx(9.0)
    assert dollars(60, chip, 2, spot=True, prices=prices) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[v7e]\non_demand = 1", "v7e"),
        ("[v6e]\nspot = 1", "on_demand"),
        ('[v6e]\non_demand = "cheap"', "v6e.on_demand"),
        ("[v6e]\non_demand = -1", "v6e.on_demand"),
        ("[v6e\n", "mine.toml"),
    ],
)
def test_a_bad_price_file_is_named_with_the_place(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"mine\.toml") as error:
        load_prices(path)
    assert said in str(error.value)
    with pytest.raises(UserError, match=r"gone\.toml"):
        load_prices(tmp_path / "gone.toml")


def test_the_price_file_of_the_environment_is_in_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[v6e]\non_demand = 100\n")
    monkeypatch.setenv("NANOCODE_PRICES", str(path))
    chip = find_chip("v6e")
    assert chip is not None
    assert chip.price is not None
    assert chip.price.on_demand == dollars(60, chip) == 100
