"""`nanocode export`: which artifact it takes, where it writes, and that nothing is left when it fails."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli import main as command
from nanocode_core.export import directory
from nanocode_core.export.directory import FILES
from nanocode_core.model.gpt import GPT
from nanocode_core.model.weights import save_model
from nanocode_core.store import Record, Store

Run = Callable[..., tuple[int, str, str]]


def publish(store: Store, stage: str, letter: str, inputs: dict[str, Record], fill: Callable[[Path], Any]) -> Record:
    out = store.work_dir(stage, letter * 16) / "out"
    out.mkdir()
    fill(out)
    return store.publish(stage, 1, letter * 16, {}, inputs, out, {}, {"finished": 1e9})


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: GPT, tokenizer_file: Path) -> Store:
    """A store with a tokenizer and three trained models."""
    monkeypatch.setenv("NANOCODE_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    there = Store(str(tmp_path / "store"))
    tokenizer = publish(there, "tokenizer", "a", {}, lambda out: shutil.copy(tokenizer_file, out))
    for stage, letter in (("pretrain", "b"), ("sft", "c"), ("dpo", "d")):
        publish(there, stage, letter, {"tokenizer": tokenizer}, lambda out: save_model(model, out))
    return there


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def go(*arguments: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of `nanocode export ...`."""
        monkeypatch.setattr("sys.argv", ["nanocode", "export", *arguments])
        with pytest.raises(SystemExit) as ending:
            command.main()
        seen = capsys.readouterr()
        return int(ending.value.code or 0), seen.out, seen.err

    return go


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def refused(done: tuple[int, str, str], *said: str) -> None:
    code, out, error = done
    assert (code, out) == (2, "")
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    for words in said:
        assert words in error


@pytest.mark.parametrize(
    ("reference", "key"), [("pretrain", "pretrain/b"), ("sft", "sft/c"), ("sft/cc", "sft/c"), ("d" * 16, "dpo/d")]
)
def test_a_model_of_each_stage_is_exported(reference: str, key: str, store: Store, run: Run, exported: Path) -> None:
    code, out, _ = run("--model", reference, "--out", "new/there")
    assert code == 0
    assert out.startswith(f"wrote {key}")
    assert content(Path("new/there")) == content(exported)
    assert [path.name for path in Path("new").iterdir()] == ["there"]


def test_the_dpo_model_is_the_default_and_an_empty_directory_is_filled(store: Store, run: Run) -> None:
    Path("empty").mkdir()
    code, out, _ = run("--out", "empty", "--dtype", "bfloat16")
    assert code == 0
    assert out == f"wrote dpo/{'d' * 16} to empty: bfloat16, for transformers and vLLM\n"
    assert json.loads(Path("empty/config.json").read_text())["dtype"] == "bfloat16"
    assert len({path.stat().st_mode for path in Path("empty").iterdir()}) == 1


def test_an_export_is_replaced_only_with_force(store: Store, run: Run, exported: Path) -> None:
    assert run("--out", "out", "--dtype", "bfloat16")[0] == 0
    before = content(Path("out"))
    refused(run("--out", "out"), "out is not empty", "--force")
    assert content(Path("out")) == before
    assert run("--out", "out", "--force")[0] == 0
    assert content(Path("out")) == content(exported)
    assert sorted(path.name for path in Path().iterdir()) == ["out", "store"]


def test_files_that_no_export_wrote_are_never_replaced(store: Store, run: Run) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("x")
    refused(run("--out", "mine"), "not empty")
    refused(run("--out", "mine", "--force"), "'thesis.tex', which no export wrote")
    refused(run("--out", "mine/thesis.tex", "--force"), "thesis.tex is a file")
    refused(run("--out", "mine/thesis.tex/deeper"), "can't be written (Not a directory)")
    assert content(Path("mine")) == {"thesis.tex": b"x"}


@pytest.mark.parametrize("force", [False, True])
def test_nothing_is_left_of_an_export_that_fails(
    force: bool, store: Store, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    if force:
        assert run("--out", "out")[0] == 0
    before = content(Path("out")) if force else None

    def full(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"the beginning of")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(directory, "save_file", full)
    refused(run("--out", "out", *(["--force"] if force else [])), "out can't be written (No space left on device)")
    assert (content(Path("out")) if Path("out").exists() else None) == before
    assert sorted(path.name for path in Path().iterdir()) == ["out", "store"] if force else ["store"]


def test_the_former_export_stays_where_the_new_one_cant_take_its_place(
    store: Store, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("--out", "out", "--dtype", "bfloat16")[0] == 0
    before = content(Path("out"))
    rename = directory.os.rename

    def refuse_new(source: Path, target: Path) -> None:
        if source.suffix == ".partial":
            raise OSError(errno.EBUSY, "Device or resource busy")
        rename(source, target)

    monkeypatch.setattr(directory.os, "rename", refuse_new)
    refused(run("--out", "out", "--force"), "Device or resource busy")
    assert content(Path("out")) == before
    assert set(before) == FILES
    assert sorted(path.name for path in Path().iterdir()) == ["out", "store"]


def test_a_model_the_format_lacks_words_for_is_refused(
    store: Store, run: Run, make_model: Callable[..., GPT], tokenizer_file: Path
) -> None:
    tokenizer = store.records("tokenizer")[0]
    modern = make_model(smear=True, residual_scalars=True)
    publish(store, "dpo", "e", {"tokenizer": tokenizer}, lambda out: save_model(modern, out))
    refused(
        run("--model", "dpo/e", "--out", "x"), "can't express smear, residual scalars; export a model of the recipe"
    )
    assert [path.name for path in Path().iterdir()] == ["store"]


def test_bad_input_is_one_line(store: Store, run: Run) -> None:
    refused(run("--out", "x", "--dtype", "float16"), "float16", "float32 and bfloat16")
    refused(run("--out", "x", "--model", "tokenizer"), "a tokenizer artifact is not a model")
    refused(run("--out", "x", "--model", "ffff"), "no artifact 'ffff'")
    refused(run("--out", "x", "--store", "elsewhere"), "no trained dpo model in ", "elsewhere; train one")
    assert [path.name for path in Path().iterdir()] == ["store"]
