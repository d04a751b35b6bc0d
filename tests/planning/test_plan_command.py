"""`nanocode plan` without a compiler: figures against the original's, JSON, bad input, what is kept."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli import main as command
from nanocode_core.config import load_config
from nanocode_core.planning import protocol
from nanocode_core.planning.accelerators import find_accelerator
from nanocode_core.planning.cache import Cache
from nanocode_core.planning.protocol import Ask, Mesh

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by the tests here: what was counted once is known to all."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Exit code, stdout and stderr of `nanocode plan ...` without libtpu."""
    without = {name: version for name, version in protocol.versions().items() if name != "libtpu"}
    monkeypatch.setattr(protocol, "versions", lambda: without)
    monkeypatch.setenv("NANOCODE_CACHE", str(cache))

    def go(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["nanocode", "plan", *arguments])
        with pytest.raises(SystemExit) as ending:
            command.main()
        seen = capsys.readouterr()
        return int(ending.value.code or 0), seen.out, seen.err

    return go


def plan(run: Run, *arguments: str) -> dict[str, Any]:
    code, out, err = run(*arguments, "--json")
    assert code == 0, err
    (line,) = out.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


@pytest.mark.parametrize(
    ("preset", "parameters", "tokens", "steps"),
    [("d24", 1.3e9, 10.7e9, 10_241), ("d20", 477e6, 8 * 477e6, None), ("d12", 135e6, 8 * 135e6, None)],
)
def test_sizes_are_the_original_s(run: Run, preset: str, parameters: float, tokens: float, steps: int | None) -> None:
    found = plan(run, "--preset", preset)
    assert found["parameters"]["total"] == pytest.approx(parameters, rel=0.04)
    assert found["pretraining"]["tokens"] == pytest.approx(tokens, rel=0.01)
    if steps is not None:
        assert abs(found["pretraining"]["steps"] - steps) <= 1


def test_time_and_cost_of_d24_are_the_original_s(run: Run) -> None:
    """Pretraining of 7.8 h on v6e-8 at 52.5% MFU, at $2.70 a chip and hour."""
    found = plan(run, "--preset", "d24", "--accelerator", "v6e-8")
    assert found["mfu"] == 0.525
    assert found["hours"] == pytest.approx(7.8, rel=0.01)
    assert found["dollars"]["on_demand"] == pytest.approx(7.8 * 8 * 2.70, rel=0.01)
    assert found["dollars"]["spot"] == pytest.approx(7.8 * 8 * 0.573, rel=0.01)


def test_hours_follow_from_flops_chips_and_mfu(run: Run) -> None:
    found = plan(run, "--preset", "d20", "--accelerator", "v6e-32", "--mfu", "0.4")
    flops = found["pretraining"]["tokens"] * found["pretraining"]["flops_per_token"]
    assert found["pretraining"]["flops"] == flops
    assert found["hours"] * 3600 == pytest.approx(flops / (32 * 918e12 * 0.4))
    assert found["step_seconds"] * found["pretraining"]["steps"] == pytest.approx(found["hours"] * 3600)
    assert "--mfu" in next(a["source"] for a in found["assumptions"] if a["name"] == "MFU")


def test_without_libtpu_everything_else_is_printed_and_one_line_says_how_to_get_it(run: Run) -> None:
    code, out, err = run("--preset", "d24", "--accelerator", "v5e-16")
    assert (code, err) == (0, "")
    assert "1.34B" in out
    assert "10,240 of 256 x 4,096 tokens" in out
    assert "fsdp 16" in out
    (hint,) = [line for line in out.splitlines() if "libtpu is not installed" in line]
    assert "`make tpu` gets it" in hint
    found = plan(run, "--preset", "d24", "--accelerator", "v5e-16")
    assert found["memory"]["source"] == "estimated"
    assert found["memory"]["compiled"] == {}


def test_state_on_a_device_is_cut_by_fsdp(run: Run) -> None:
    whole = plan(run, "--preset", "d12", "--accelerator", "v6e-8")
    cut = plan(run, "--preset", "d12", "--accelerator", "v6e-8", "--set", "parallel.fsdp=8")
    assert whole["sharding"]["data"] == cut["sharding"]["fsdp"] == 8
    # Parameters, and of the optimizer one average a matrix, two for embedding and head.
    counts = whole["parameters"]
    assert whole["memory"]["estimate"]["parameters"] == 4 * counts["total"]
    expected = 4 * (counts["total"] + counts["embedding"] + counts["head"])
    assert whole["memory"]["estimate"]["optimizer"] == pytest.approx(expected, rel=1e-3)
    for part in ("parameters", "optimizer"):
        assert cut["memory"]["estimate"][part] == pytest.approx(whole["memory"]["estimate"][part] / 8, rel=1e-3)


@pytest.mark.parametrize("name", ["h100-8", "h200-1", "cpu"])
def test_gpus_and_cpu_get_an_estimate_named_as_one(run: Run, name: str) -> None:
    code, out, _ = run("--preset", "d12", "--accelerator", name)
    assert code == 0
    assert "estimate" in out
    assert "libtpu" not in out
    found = plan(run, "--preset", "d12", "--accelerator", name)
    assert found["memory"]["source"] == "estimated"
    assert (found["hours"] is None) == (name == "cpu")


def test_every_assumption_has_value_and_source(run: Run) -> None:
    found = plan(run, "--preset", "d24")
    assert {"scope", "FLOPs a token", "peak", "MFU", "price", "memory"} <= {a["name"] for a in found["assumptions"]}
    assert all(a["value"] and a["source"] for a in found["assumptions"])
    assert "2026" in next(a["source"] for a in found["assumptions"] if a["name"] == "price")


def test_prices_of_the_user_count(run: Run, tmp_path: Path) -> None:
    prices = tmp_path / "mine.toml"
    prices.write_text('[v6e]\non_demand = 1.0\ndate = "2027-03"\nsource = "our contract"\n')
    found = plan(run, "--preset", "d24", "--prices", str(prices))
    assert found["dollars"]["on_demand"] == pytest.approx(8 * found["hours"])
    assert found["dollars"]["spot"] is None


def test_a_sweep_has_a_line_for_each_preset_and_accelerator(run: Run) -> None:
    code, out, err = run("--sweep", "--preset", "d12,d24", "--accelerator", "v6e-8,h200-1,v6e-256")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert [line[:2] for line in lines if line and line[0] in ("d12", "d24")] == [
        [preset, name] for preset in ("d12", "d24") for name in ("v6e-8", "h200-1", "v6e-256")
    ]
    code, out, _ = run("--sweep", "--preset", "d12", "--accelerator", "v6e-8,v6e-32", "--json")
    assert [entry["accelerator"]["name"] for entry in json.loads(out)] == ["v6e-8", "v6e-32"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--accelerator", "v6e-9"), "v6e-8"),
        (("--preset", "d25"), "d24"),
        (("--set", "model.widht=3"), "model.width"),
        (("--mfu", "45"), "--mfu"),
        (("--mfu", "0"), "--mfu"),
        (("--preset", "d12,d24"), "--sweep"),
        (("--prices", "gone.toml"), "gone.toml"),
        (("--set", "parallel.fsdp=3"), "must divide"),
        (("--set", "training.batch_sequences=12"), "batch_sequences"),
        (("--set", "training.micro_sequences=5"), "micro_sequences"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run: Run, arguments: tuple[str, ...], said: str) -> None:
    code, out, err = run("--accelerator", "v6e-8", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err


class Kept:
    """Answers as if they had been compiled earlier, for a config on v6e-8."""

    def __init__(self, directory: Path, *sets: str) -> None:
        self._cache, self._config = Cache(directory / "plan"), load_config("d24", sets)
        self.accelerator = find_accelerator("v6e-8")

    def add(self, mesh: Mesh, rows: int, micro: int, gib: int) -> None:
        limit = self.accelerator.limit
        assert limit is not None
        fits = gib * 2**30 <= limit
        program = f"{mesh.data}-{mesh.fsdp}-{micro}"
        answer = {
            "fits": fits,
            "peak": gib * 2**30,
            "limit": limit,
            "problem": "" if fits else "Ran out of memory",
            "memory": {},
            "state": {},
            "compile_seconds": 60.0,
            "program": program,
        }
        self._cache.keep_program(program, answer)
        self._cache.keep_request(Ask(self._config, self.accelerator, mesh, rows, micro).key(), program)


def test_what_was_compiled_before_is_used_without_a_compiler(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOCODE_CACHE", str(tmp_path))
    found = plan(run, "--preset", "d24")
    rows, micro = found["pretraining"]["batch_sequences"], found["memory"]["sequences_at_once"]
    kept = Kept(tmp_path)
    kept.add(Mesh(1, 8), rows, micro, 20)
    kept.add(Mesh(1, 8), rows, 2 * micro, 40)
    found = plan(run, "--preset", "d24")
    assert found["memory"]["source"] == "compiled"
    assert found["memory"]["fits"] is True
    assert found["memory"]["largest_at_once"] == micro
    assert found["memory"]["margin_bytes"] == kept.accelerator.limit - 20 * 2**30  # type: ignore[operator]
    assert found["notes"] == []
    # Another remat policy is another program: nothing is known of it.
    assert plan(run, "--preset", "d24", "--set", "model.remat=full")["memory"]["source"] == "estimated"


def test_where_training_s_choice_does_not_fit_the_plan_says_what_does(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOCODE_CACHE", str(tmp_path))
    sets = ("model.depth=8", "training.micro_sequences=4", "training.batch_sequences=32")
    arguments = ("--preset", "d24", *(word for item in sets for word in ("--set", item)))
    assert plan(run, *arguments)["sharding"]["data"] == 8
    kept = Kept(tmp_path, *sets)
    for micro in (1, 2, 4):
        kept.add(Mesh(8), 32, micro, 60)
        kept.add(Mesh(1, 8), 32, micro, 20 * micro)
    found = plan(run, *arguments)
    assert (found["sharding"]["data"], found["sharding"]["fsdp"]) == (1, 8)
    assert "does not fit" in found["sharding"]["reason"]
    assert found["memory"]["fits"] is False  # 4 at once, as it is set
    assert found["memory"]["largest_at_once"] == 1
    assert any("parallel.fsdp=8" in note for note in found["notes"])
    assert any("training.micro_sequences=1" in note for note in found["notes"])
    _, out, _ = run(*arguments)
    assert "48.75 GiB too much" in out
