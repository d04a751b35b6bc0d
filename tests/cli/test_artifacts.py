"""`nanocode artifacts` on a store of toy stages: what it prints, what it removes, how it fails."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

import tasks
from cli import main as command
from nanocode_core.config import load_config
from nanocode_core.jobs.stage import Stage, plan
from nanocode_core.store import Store

SOUL = {"sha256": "ab" * 32}

STAGES = (
    Stage("corpus", 1, "-", (), ("corpus", "seed")),
    Stage("tokens", 1, "-", ("corpus",), ("model.sequence",)),
    Stage("pretrain", 1, "-", ("corpus", "tokens"), ("model", "seed")),
    Stage("synthetic", 1, "-", (), ("synthetic.rollouts",), extra=lambda config: {"soul.sha256": SOUL["sha256"]}),
    Stage("sft", 2, "-", ("pretrain", "synthetic"), ("sft.epochs",)),
)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store in which every stage was built once under the preset demo."""
    monkeypatch.setattr(tasks, "STAGES", STAGES)
    monkeypatch.setenv("NANOCODE_STORE", str(tmp_path / "store"))
    monkeypatch.setitem(SOUL, "sha256", "ab" * 32)
    there = Store(str(tmp_path / "store"))
    publish(there)
    return there


def publish(store: Store, *sets: str) -> None:
    """Build whatever the toy stages still lack under demo with these settings."""
    records = {}
    for place, (name, planned) in enumerate(plan(STAGES, load_config("demo", sets), store).items()):
        if planned.record is None:
            out = store.work_dir(name, planned.fingerprint) / "out"
            out.mkdir(parents=True)
            (out / "data.bin").write_bytes(planned.fingerprint.encode())
            provenance = {"finished": 1e9 + len(store.published()) + place, "minutes": 2.5, "starts": 1}
            inputs = {n: records[n] for n in planned.inputs}
            identity, metrics = planned.identity, {"accuracy": 0.5, "rows": 12_345}
            store.publish(name, planned.stage.version, planned.fingerprint, identity, inputs, out, metrics, provenance)
        record = store.record(name, planned.fingerprint)
        assert record is not None
        records[name] = record


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def go(*arguments: str, answer: str = "") -> tuple[int, str, str]:
        """Exit code, stdout and stderr of `nanocode artifacts ...`."""
        monkeypatch.setattr("sys.argv", ["nanocode", "artifacts", *arguments])
        monkeypatch.setattr("sys.stdin", io.StringIO(answer + "\n"))
        with pytest.raises(SystemExit) as ending:
            command.main()
        seen = capsys.readouterr()
        return int(ending.value.code or 0), seen.out, seen.err

    return go


def key(store: Store, stage: str) -> str:
    (found,) = store.published(stage)
    return "/".join(found)


def data(store: Store, stage: str) -> Path:
    return Path(store.root, "artifacts", key(store, stage), "data.bin")


def test_ls_lists_every_artifact_with_its_figures(store: Store, run: Run) -> None:
    code, out, _ = run("ls")
    assert code == 0
    lines = [line for line in out.splitlines() if "/" in line]
    assert [line.split("/")[0] for line in lines] == [stage.name for stage in STAGES]
    assert "accuracy 50.0%, rows 12,345" in lines[0]
    assert "2.5 min" in lines[0]


def test_ls_of_a_stage_as_json(store: Store, run: Run) -> None:
    _, out, _ = run("ls", "sft", "--json")
    (row,) = json.loads(out)
    assert f"{row['stage']}/{row['fingerprint']}" == key(store, "sft")
    assert row["metrics"] == {"accuracy": 0.5, "rows": 12_345}


def test_ls_of_an_empty_store_says_so(tmp_path: Path, run: Run) -> None:
    code, out, _ = run("ls", "--store", str(tmp_path / "none"))
    assert (code, out) == (0, f"no artifacts in {tmp_path / 'none'}\n")
    assert not (tmp_path / "none").exists()


def test_ls_shows_an_unreadable_record_among_the_others(store: Store, run: Run) -> None:
    data(store, "tokens").with_name("artifact.json").write_text("{")
    code, out, _ = run("ls")
    assert code == 0
    assert len([line for line in out.splitlines() if "/" in line]) == len(STAGES)
    assert "not a valid record" in out


def test_show_prints_record_and_input_tree(store: Store, run: Run) -> None:
    code, out, _ = run("show", "sft")
    assert code == 0
    assert key(store, "sft") in out
    assert "sft.epochs" in out
    assert "data.bin" in out
    tree = out[out.index("made from") :]
    assert tree.index("pretrain/") < tree.index("corpus/") < tree.index("tokens/") < tree.index("synthetic/")


def test_show_as_json_is_the_record(store: Store, run: Run) -> None:
    _, out, _ = run("show", "pretrain", "--json")
    value = json.loads(out)
    assert value["inputs"]["tokens"]["fingerprint"] == key(store, "tokens").partition("/")[2]
    assert "against" not in value


def test_show_against_the_same_config_would_be_reused(store: Store, run: Run) -> None:
    _, out, _ = run("show", "sft", "--preset", "demo", "--set", "training.validate_every=7")
    assert "would be reused" in out


def test_show_names_the_changed_fields_of_inputs(store: Store, run: Run) -> None:
    _, out, _ = run("show", "sft", "--set", "model.depth=6", "--set", "sft.epochs=1.5")
    assert "would not be reused" in out
    assert "model.depth  4 -> 6" in out
    assert f"sft.epochs  {load_config('demo').sft.epochs} -> 1.5" in out
    assert "input synthetic" not in out
    assert "input corpus" not in out


def test_show_tells_each_reason_once(store: Store, run: Run) -> None:
    _, out, _ = run("show", "sft", "--set", "corpus.code_share=0.5", "--json")
    against = json.loads(out)["against"]
    assert against["reused"] is False
    assert against["changes"] == [{"stage": "corpus", "field": "corpus.code_share", "was": 0.2, "now": 0.5}]


def test_show_takes_lists_of_sections_apart(store: Store, run: Run) -> None:
    sources = (
        '[{"kind":"python","name":"mine","content":"prose"},{"kind":"python","name":"python-code","content":"code"}]'
    )
    _, out, _ = run("show", "corpus", "--set", f"corpus.sources={sources}")
    assert 'corpus.sources[0].name  "python-prose" -> "mine"' in out
    assert "sources[1]" not in out


def test_show_says_that_the_soul_changed(store: Store, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOUL, "sha256", "cd" * 32)
    _, out, _ = run("show", "sft", "--preset", "demo")
    assert "soul.sha256  abababababab -> cdcdcdcdcdcd  (SOUL.md changed)" in out
    assert "input pretrain" not in out


def test_show_says_that_the_stage_itself_changed(store: Store, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    newer = tuple(
        Stage(s.name, s.version + (s.name == "tokens"), s.build, s.inputs, s.identity, s.extra) for s in STAGES
    )
    monkeypatch.setattr(tasks, "STAGES", newer)
    _, out, _ = run("show", "tokens", "--preset", "demo")
    assert "stage version  1 -> 2" in out


def test_show_admits_what_is_no_longer_known(store: Store, run: Run) -> None:
    assert run("rm", "tokens", "--yes")[0] == 0
    _, out, _ = run("show", "pretrain", "--set", "model.sequence=1024")
    assert "model.sequence  512 -> 1024" in out
    assert "not in the store any more" in out


def test_verify_is_quiet_about_what_is_whole(store: Store, run: Run) -> None:
    code, out, _ = run("verify", "--all")
    assert code == 0
    assert out.count(" ok") == len(STAGES)


def test_verify_names_the_damaged_file_and_the_repair(store: Store, run: Run) -> None:
    path = data(store, "pretrain")
    path.write_bytes(bytes(len(path.read_bytes())))
    code, out, _ = run("verify")
    assert code == 1
    assert "data.bin is damaged" in out
    assert f"nanocode artifacts rm {key(store, 'pretrain')}" in out
    assert out.count(" ok") == len(STAGES) - 1
    assert run("verify", "sft")[0] == 0
    code, out, _ = run("verify", "pretrain", "--json")
    assert code == 1
    assert json.loads(out)[0]["problems"] == ["data.bin is damaged (sha256 differs)"]


def test_rm_names_dependents_and_asks(store: Store, run: Run) -> None:
    code, out, _ = run("rm", "tokens", answer="n")
    assert code == 1
    assert f"went into {key(store, 'pretrain')}" in out
    assert data(store, "tokens").exists()
    code, out, _ = run("rm", "tokens", answer="y")
    assert code == 0
    assert store.published("tokens") == []


def test_rm_removes_what_cant_be_read(store: Store, run: Run) -> None:
    data(store, "tokens").with_name("artifact.json").write_text("{")
    assert run("rm", "tokens", "--yes")[0] == 0
    assert store.published("tokens") == []


def test_gc_keeps_the_newest_and_what_it_is_made_from(store: Store, run: Run) -> None:
    before = set(store.published())
    publish(store, "model.depth=6")
    code, out, _ = run("gc", "--dry-run")
    assert code == 0
    assert out.count("would remove pretrain/") == 1
    assert len(store.published()) == len(before) + 2
    _, out, _ = run("gc")
    assert "removed sft/" in out
    assert len(store.published()) == len(before)
    _, out, _ = run("gc", "--keep", "2")
    assert out == "nothing to remove\n"


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("show", "nothing"), "nanocode artifacts ls"),
        (("show", "sft", "--preset", "demi"), "demo"),
        (("show", "sft", "--set", "model.deep=3"), "model.depth"),
        (("verify", "sft/ffff", "--all"), "not both"),
        (("gc", "--keep", "-1"), "keep"),
        (("rm", "../.."), "artifacts"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(store: Store, run: Run, arguments, hint: str) -> None:
    before = sorted(Path(store.root).rglob("*"))
    code, out, error = run(*arguments)
    assert code == 2
    assert out == ""
    assert error.startswith("error: ")
    assert hint in error
    assert error.count("\n") == 1
    assert sorted(Path(store.root).rglob("*")) == before


def test_texts_of_a_record_are_printed_literally(store: Store, run: Run) -> None:
    out_dir = store.work_dir("odd", "0" * 16) / "out"
    out_dir.mkdir()
    store.publish("odd", 1, "0" * 16, {"name": "[bold]x[/bold] \x1b[31m"}, {}, out_dir, {"[red]": "[/]"}, {})
    code, out, _ = run("show", "odd")
    assert code == 0
    assert "[bold]x[/bold] ␛[31m" in out
    assert "\x1b" not in out
