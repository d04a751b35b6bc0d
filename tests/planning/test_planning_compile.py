"""Real compilations for a TPU slice, where libtpu is installed: it fits, it doesn't, it is known already."""

from pathlib import Path

import pytest

from nanocode_core.config import Config, load_config
from nanocode_core.planning.accelerators import Accelerator, find_accelerator
from nanocode_core.planning.compiler import Compiler, CompilerCrash, how_to_get_it
from nanocode_core.planning.protocol import Ask, Mesh, compiler_is_here

needs_libtpu = pytest.mark.skipif(not compiler_is_here(), reason=how_to_get_it())

TINY = (
    "model.depth=2",
    "model.width=256",
    "model.heads=2",
    "model.sequence=256",
    "tokenizer.vocabulary=1024",
    "training.batch_sequences=16",
    "training.steps=10",
)


def tiny(*sets: str) -> tuple[Config, Accelerator]:
    return load_config("d12", [*TINY, *sets]), find_accelerator("v6e-4")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled")


@needs_libtpu
def test_a_step_is_compiled_once_and_known_from_then_on(directory: Path) -> None:
    config, slice_of_four = tiny("parallel.fsdp=4")
    ask = Ask(config, slice_of_four, Mesh(1, 4), 16, 4)
    with Compiler(directory) as compiler:
        assert compiler.known(ask) is None
        first = compiler.compile(ask)
    assert first.fits
    assert not first.cached
    assert 2**20 < first.peak < 2**30
    assert first.limit == slice_of_four.limit
    assert first.margin == first.limit - first.peak
    # Matrices' momentum and the moments of embedding and head are cut; counters are not.
    assert first.state["largest_replicated"] < 100
    again = Compiler(directory)  # never started: a kept answer needs no process
    assert again.compile(ask).cached
    assert again.known(ask).peak == first.peak  # type: ignore[union-attr]


@needs_libtpu
def test_the_same_program_asked_for_differently_is_not_compiled_again(directory: Path) -> None:
    """How often to validate is no part of the step: another request, the same lowered program."""
    config, slice_of_four = tiny("parallel.fsdp=4", "training.validate_every=7")
    ask = Ask(config, slice_of_four, Mesh(1, 4), 16, 4)
    with Compiler(directory) as compiler:
        assert compiler.known(ask) is None
        assert compiler.compile(ask).cached


@needs_libtpu
def test_what_does_not_fit_is_an_answer_with_the_figures(directory: Path) -> None:
    """Eight GB of embedding on every device, with head, gradients and averages beside it."""
    config, slice_of_four = tiny("tokenizer.vocabulary=262144", "model.width=8192", "model.heads=64")
    with Compiler(directory) as compiler:
        outcome = compiler.compile(Ask(config, slice_of_four, Mesh(4), 16, 4))
        assert not outcome.fits
        assert outcome.limit == slice_of_four.limit
        assert outcome.margin < -(2**30)
        assert "exceed" in outcome.problem
        assert outcome.state["largest_replicated"] == 262_144 * 8_192 * 4
        # The child lives on and goes on answering.
        facts = compiler.facts(config, slice_of_four)
    assert facts.parameters["embedding"] == 262_144 * 8_192


def test_a_child_that_ends_is_told_and_the_next_one_answers(tmp_path: Path) -> None:
    config, slice_of_four = tiny()
    with Compiler(tmp_path) as compiler:
        before = compiler.facts(config, slice_of_four)
        with pytest.raises(CompilerCrash, match="ValidationError"):
            compiler._request(None, {"operation": "facts", "accelerator": "v6e-4", "config": {"model": {"depth": "x"}}})
        assert compiler._child is not None
        compiler._child.kill()
        compiler._child.wait()
        later = compiler.facts(load_config("d12", [*TINY, "model.depth=3"]), slice_of_four)
    assert later.parameters["matrices"] == before.parameters["matrices"] * 3 // 2
