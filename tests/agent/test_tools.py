import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanocode_core.agent.sandbox import Sandbox
from nanocode_core.agent.tools import TOOLS, Tools, validate_call
from nanocode_core.tokenizer.conversation import ToolCall


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox() as box:
        yield box


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "a.py").write_text("one = 1\ntwo = 2\nthree = 3\nfour = 4\nfive = 5\n")
    (tmp_path / "secret.txt").write_text("secret = 42\n")
    return folder


@pytest.fixture
def run(root: Path, sandbox: Sandbox):
    tools = Tools(root, sandbox, seconds=5)

    def run(name: str, **arguments: str) -> str:
        return tools.run(ToolCall(name, {key.replace("minus_", "-"): value for key, value in arguments.items()}))

    return run


def test_read_numbers_lines_in_five_columns(run):
    assert run("Read", file_path="a.py", offset="2", limit="2") == "    2→two = 2\n    3→three = 3"


def test_read_says_what_it_left_out(run, root):
    (root / "long.py").write_text("x\n" * 1000)
    assert run("Read", file_path="long.py").endswith("  400→x\n... 600 more lines")


def test_edit_shows_the_lines_around_the_change(run, root):
    assert run("Edit", file_path="a.py", old_string="three = 3", new_string="three = 33").splitlines() == [
        "    1→one = 1",
        "    2→two = 2",
        "    3→three = 33",
        "    4→four = 4",
        "    5→five = 5",
    ]
    assert (root / "a.py").read_text() == "one = 1\ntwo = 2\nthree = 33\nfour = 4\nfive = 5\n"


def test_edit_makes_a_new_file_with_its_folders(run, root):
    assert run("Edit", file_path="src/new/b.py", new_string="x = 1\n") == "    1→x = 1"
    assert (root / "src/new/b.py").read_text() == "x = 1\n"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"old_string": "six", "new_string": "x"}, "error: old_string not found in a.py"),
        ({"old_string": " = ", "new_string": "x"}, "error: old_string is 5 times in a.py; add lines around it"),
        ({"old_string": "one", "new_string": "one"}, "error: old_string and new_string are the same"),
        ({"new_string": "x"}, "error: a.py already exists; give old_string to change it"),
    ],
)
def test_edit_refuses_what_is_not_unique(run, root, arguments, error):
    before = (root / "a.py").read_bytes()
    assert run("Edit", file_path="a.py", **arguments) == error
    assert (root / "a.py").read_bytes() == before


def test_overlapping_occurrences_are_not_unique(run, root):
    (root / "b.py").write_text("aaa")
    assert run("Edit", file_path="b.py", old_string="aa", new_string="b").startswith("error: old_string is 2 times")


def test_edit_keeps_windows_line_ends_and_the_mode(run, root):
    path = root / "w.py"
    path.write_bytes(b"a = 1\r\nb = 2\r\n")
    path.chmod(0o750)
    run("Edit", file_path="w.py", old_string="a = 1\nb", new_string="a = 3\nb")
    assert path.read_bytes() == b"a = 3\r\nb = 2\r\n"
    assert path.stat().st_mode & 0o777 == 0o750
    assert sorted(p.name for p in root.iterdir()) == ["a.py", "w.py"]


def test_grep_shows_path_line_and_context(run, root):
    (root / "src").mkdir()
    (root / "src" / "b.py").write_text("def two():\n    return 2\n")
    assert run("Grep", pattern="two") == "a.py:2:two = 2\nsrc/b.py:1:def two():"
    assert run("Grep", pattern="t(wo|hree) =", path="a.py") == "a.py:2:two = 2\na.py:3:three = 3"
    assert run("Grep", pattern="three", minus_A="1", minus_B="1") == "a.py-2-two = 2\na.py:3:three = 3\na.py-4-four = 4"
    assert run("Grep", pattern="one|five", minus_A="1") == "a.py:1:one = 1\na.py-2-two = 2\n--\na.py:5:five = 5"
    assert run("Grep", pattern="seven") == "no matches found"
    assert run("Grep", pattern="(").startswith("error: bad pattern")


def test_grep_has_a_time_limit(run, root, monkeypatch):
    monkeypatch.setattr("nanocode_core.agent.tools.GREP_SECONDS", 0.5)
    (root / "evil.txt").write_text("a" * 64 + "b\n")
    assert run("Grep", pattern="(a+)+$", path="evil.txt").startswith("error: the search took longer")


def test_grep_skips_binary_hidden_and_linked_files(run, root, tmp_path):
    (root / "bin").write_bytes(b"one\0")
    (root / ".hidden").write_text("one")
    (root / "link").symlink_to(tmp_path / "secret.txt")
    assert run("Grep", pattern="one|secret") == "a.py:1:one = 1"


def test_bash_reports_output_errors_and_time_outs(run, root):
    assert run("Bash", command="echo hi; echo there >&2") == "hi\nthere"
    assert run("Bash", command="true") == "(no output)"
    (root / "bad.py").write_text("print(x)\n")
    result = run("Bash", command="python bad.py")
    assert result.startswith("error: exit code 1\n")
    assert "NameError" in result
    assert str(root) not in result


def test_bash_output_is_cut(run):
    result = run("Bash", command="yes | head -c 100000")
    assert len(result) < 9000
    assert "... output cut ..." in result


@pytest.mark.parametrize(
    "name", ["../secret.txt", "/etc/passwd", "~/x", "link", "folder/secret.txt", "x/../../secret.txt"]
)
def test_nothing_outside_the_project(run, root, tmp_path, name):
    (root / "link").symlink_to(tmp_path / "secret.txt")
    (root / "folder").symlink_to(tmp_path)
    for result in (
        run("Read", file_path=name),
        run("Edit", file_path=name, new_string="gone"),
        run("Edit", file_path=name, old_string="42", new_string="gone"),
        run("Grep", pattern="secret", path=name),
    ):
        assert result == f"error: {name} is outside the project"
    assert (tmp_path / "secret.txt").read_text() == "secret = 42\n"


def test_bash_can_not_follow_a_link_out(run, root, tmp_path, sandbox):
    if not sandbox.isolation.files:
        pytest.skip("no Landlock here")
    (root / "link").symlink_to(tmp_path / "secret.txt")
    assert "42" not in run("Bash", command="cat link ../secret.txt")
    run("Bash", command="echo gone > link")
    assert (tmp_path / "secret.txt").read_text() == "secret = 42\n"


def test_odd_files_are_refused_in_words(run, root):
    (root / "binary").write_bytes(b"\x00\x01")
    (root / "latin").write_bytes("é".encode("latin-1"))
    (root / "large").write_bytes(b"x" * 1_000_001)
    (root / "empty").write_bytes(b"")
    os.mkfifo(root / "pipe")
    assert run("Read", file_path="binary") == "error: binary is a binary file"
    assert run("Read", file_path="latin") == "error: latin is not utf-8 text"
    assert run("Read", file_path="large") == "error: large is too large (1000001 bytes)"
    assert run("Read", file_path="pipe") == "error: pipe is not a regular file"
    assert run("Read", file_path=".") == "error: . is a directory"
    assert run("Read", file_path="none.py") == "error: no such file: none.py"
    assert run("Read", file_path="empty") == "(empty file)"
    assert run("Read", file_path="a.py", offset="9") == "error: a.py has only 5 lines"
    assert run("Edit", file_path="a.py/b.py", new_string="x").startswith("error: ")


def test_validate_call():
    assert validate_call(ToolCall("Read", {"file_path": "a.py", "limit": "3"})) is None
    assert validate_call(ToolCall("Edit", {"file_path": "a.py", "new_string": ""})) is None
    for call in (
        ToolCall("Write", {}),
        ToolCall("Read", {}),
        ToolCall("Read", {"file_path": " "}),
        ToolCall("Read", {"file_path": "a.py", "limit": "three"}),
        ToolCall("Bash", {"command": "ls", "cwd": "/"}),
    ):
        assert validate_call(call) is not None


_TEXT = st.text(max_size=20) | st.sampled_from(["a.py", ".", "..", "\0", "~", "x/y", "\ud800", "(", "one", "a" * 300])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["Read", "Edit", "Grep"]) | st.text(min_size=1, max_size=5),
    arguments=st.dictionaries(
        st.sampled_from([key for schema in TOOLS.values() for key in schema if key != "command"]), _TEXT, max_size=4
    ),
)
def test_wild_calls_never_raise_and_stay_inside(tmp_path, sandbox, name, arguments):
    root = tmp_path / "wild" / "project"
    root.mkdir(parents=True, exist_ok=True)
    (root / "a.py").write_text("one = 1\n")
    outcome = Tools(root, sandbox).run(ToolCall(name, arguments))
    assert isinstance(outcome, str)
    assert outcome
    assert sorted(p.name for p in root.parent.iterdir()) == ["project"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["wild"]
