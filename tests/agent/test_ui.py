"""The chat as the real program, with a tiny model that has learned three conversations by heart."""

import fcntl
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest

from nanocode_core.agent.ui import Switch, run_chat, run_once
from nanocode_core.errors import UserError

CALL_REQUEST = "go"
WORDS_REQUEST = "count"
WAIT_REQUEST = "wait"
COMMAND = "echo hi>a; cat a"
WORDS = "one two three four five six seven"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder with a tokenizer and a model trained on three conversations until it knows them."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from flax import nnx

    from nanocode_core.model.gpt import GPT
    from nanocode_core.model.shape import Shape
    from nanocode_core.model.weights import save_model
    from nanocode_core.tokenizer import Conversation, Tokenizer, ToolCall, Turn, render
    from nanocode_core.tokenizer.train import train

    folder = tmp_path_factory.mktemp("trained")
    backend = train(["go on it count one two"] * 4, 280)
    backend.save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer.load(folder)
    talks = [
        Conversation(
            (
                Turn("user", CALL_REQUEST),
                Turn("assistant", "on it", ToolCall("Bash", {"command": COMMAND})),
                Turn("tool", "hi"),
                Turn("assistant", "it says hi"),
            )
        ),
        Conversation((Turn("user", WORDS_REQUEST), Turn("assistant", WORDS))),
        Conversation((Turn("user", WAIT_REQUEST), Turn("assistant", "", ToolCall("Bash", {"command": "sleep 98765"})))),
    ]
    rows = np.zeros((len(talks), 128), np.int32)
    mask = np.zeros(rows.shape, np.float32)
    for row, talk in enumerate(talks):
        ids, loss = render(talk, tokenizer)
        rows[row, : len(ids)], mask[row, : len(ids)] = ids, loss
    shape = Shape(1, 64, 2, 2, 2, tokenizer.vocabulary, 128, 10_000.0, 15.0, "float32")
    model = GPT(shape, seed=0)
    graph, params = nnx.split(model, nnx.Param)
    adam = optax.adam(3e-3)
    state = adam.init(params)

    @jax.jit
    def step(params, state):
        def loss(params):
            logits = nnx.merge(graph, params)(jnp.asarray(rows[:, :-1]))
            nats = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(rows[:, 1:]))
            return jnp.sum(nats * mask[:, 1:]) / mask.sum()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = adam.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    for _ in range(400):
        params, state, value = step(params, state)
        if value < 0.01:
            break
    assert value < 0.05
    save_model(nnx.merge(graph, params), folder)
    return folder


class Screen:
    """The chat in a process of its own on a pseudo terminal, its controlling one: Ctrl-C is a signal."""

    def __init__(self, trained, root, cache):
        self.fd, theirs = pty.openpty()
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        code = (
            "import fcntl, sys, termios; from pathlib import Path; from nanocode_core.agent.ui import run_chat; "
            "fcntl.ioctl(0, termios.TIOCSCTTY, 0); model, root, cache = map(Path, sys.argv[1:]); "
            "sys.exit(run_chat(model, model, root, cache))"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, trained, root, cache],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm"},
            start_new_session=True,
        )
        os.close(theirs)
        self.seen = ""

    def read(self, seconds):
        if select.select([self.fd], [], [], seconds)[0]:
            try:
                part = os.read(self.fd, 65536).decode("utf-8", "replace")
            except OSError:
                return False
            if "\x1b[6n" in part:  # prompt_toolkit asks where the cursor is
                os.write(self.fd, b"\x1b[1;1R")
            self.seen += part
            return bool(part)
        return True

    def text(self):
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.seen)

    def until(self, words, seconds=40):
        """Wait until the screen shows words after what was waited for before; forgets up to there."""
        end = time.monotonic() + seconds
        while words not in self.text():
            assert time.monotonic() < end, f"{words!r} did not show up in: {self.text()}"
            assert self.read(0.2), f"the program ended without {words!r}: {self.text()}"
        before, _, self.seen = self.text().partition(words)
        return before + words

    def type(self, text):
        os.write(self.fd, text.encode())

    def ended(self, seconds=30):
        end = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < end, f"still running: {self.text()}"
            self.read(0.1)
        return self.process.returncode

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.fd)


@pytest.fixture
def screen(trained, tmp_path):
    root = tmp_path / "project"
    root.mkdir()
    made = Screen(trained, root, tmp_path / "cache")
    made.root, made.cache = root, tmp_path / "cache"
    yield made
    made.close()


def test_a_chat_on_a_terminal(screen):
    """Asks before Bash; n rejects, a allows for good; /show, /clear, /help and /quit do what they say."""
    screen.until("/help shows the commands")
    screen.until(">")
    screen.type("go\r")
    assert "on it" in screen.until("run it? [y]es, [n]o, [a]lways Bash: ")
    screen.type("n\r")
    screen.until("rejected by user")
    assert not (screen.root / "a").exists()
    screen.until(">")
    screen.type("/show\r")
    shown = screen.until("<|tool_result_end|>")
    assert f"<|tool_call_start|>Bash<|tool_arg|>command<|tool_val|>{COMMAND}<|tool_call_end|>" in shown
    screen.type("/clear\r")
    screen.until("a new conversation")
    screen.type("go\r")
    screen.until("[a]lways Bash: ")
    screen.type("maybe\r")
    screen.until("[a]lways Bash: ")
    screen.type("a\r")
    screen.until("it says hi")
    assert (screen.root / "a").read_text() == "hi\n"
    screen.type("/clear\r")
    screen.until("a new conversation")
    screen.type("go\r")
    assert "run it?" not in screen.until("it says hi")
    screen.until(">")
    screen.type("/nonsense\r")
    screen.until("unknown command /nonsense")
    screen.type("/help\r")
    screen.until("Ctrl-C stops the model")
    screen.type("/quit\r")
    assert screen.ended() == 0
    assert "go" in (screen.cache / "agent_history").read_text()
    assert (screen.cache / "agent_history").stat().st_mode & 0o077 == 0


def test_ctrl_c_ends_what_runs_and_never_the_chat_and_ctrl_d_quits(screen):
    screen.until("/help shows the commands")
    screen.until(">")
    screen.type("half a line\x03")
    screen.until("Ctrl-D or /quit leaves")
    screen.until(">")
    screen.type("go\r")
    screen.until("[a]lways Bash: ")
    screen.type("\x03")
    screen.until("rejected by user")
    assert not (screen.root / "a").exists()
    screen.until(">")
    screen.type("/clear\r")
    screen.until("a new conversation")
    screen.type("wait\r")
    screen.until("[a]lways Bash: ")
    screen.type("y\r")
    time.sleep(1)
    screen.type("\x03")
    screen.until("error: interrupted by user", seconds=20)
    end = time.monotonic() + 10
    while subprocess.run(["pgrep", "-f", "^sleep 98765"], capture_output=True).returncode == 0:
        assert time.monotonic() < end, "the command goes on"
        time.sleep(0.1)
    screen.until(">")
    screen.type("/clear\r")
    screen.until("a new conversation")
    screen.type("count\r")
    screen.until("one two three")
    screen.until(">")
    screen.type("\x04")
    assert screen.ended() == 0


def test_ctrl_c_asks_a_turn_to_end_and_interrupts_a_call():
    switch = Switch()
    with switch.watching():
        signal.raise_signal(signal.SIGINT)
        assert switch.pressed
        with pytest.raises(KeyboardInterrupt), switch.interrupting():
            signal.raise_signal(signal.SIGINT)
        assert not switch.raising
    with switch.watching():
        assert not switch.pressed


@pytest.fixture
def piped(trained, tmp_path, monkeypatch, capsys):
    """Runs the chat, or one prompt, with what was typed on a pipe; what it printed."""

    monkeypatch.setenv("NANOCODE_CACHE", str(tmp_path / "cache"))

    def run(typed="", once=None, cache=tmp_path / "cache", **options):
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        root = tmp_path / "project"
        root.mkdir(exist_ok=True)
        if once is None:
            assert run_chat(trained, trained, root, cache, **options) == 0
        else:
            assert run_once(once, trained, trained, root, **options) == 0
        return capsys.readouterr().out

    return run


def test_a_chat_through_pipes_is_plain_lines(piped):
    shown = piped("count\n\n/clear\ngo\ny\n/quit\n")
    assert "\x1b" not in shown
    assert f"> count\n{WORDS}\n> \n> /clear\n(a new conversation)\n> go\non it\n● $ {COMMAND}\n" in shown
    assert shown.splitlines()[-3:] == ["  hi", "it says hi", "> /quit"]


def test_the_end_of_the_input_quits_and_is_no_yes(piped, tmp_path):
    assert "rejected by user" in piped("go\n")
    assert not (tmp_path / "project" / "a").exists()


def test_one_shot_with_leave_runs_the_call_in_the_sandbox(piped, tmp_path):
    shown = piped(once="go", yes_in_sandbox=True)
    assert shown.splitlines()[-5:] == ["> go", "on it", f"● $ {COMMAND}", "  hi", "it says hi"]
    assert (tmp_path / "project" / "a").read_text() == "hi\n"


def test_one_shot_without_leave_and_without_terminal_rejects_and_says_so(piped, tmp_path):
    shown = piped(once="go")
    assert "--yes-in-sandbox would run it" in shown
    assert "rejected by user" in shown
    assert not (tmp_path / "project" / "a").exists()


def test_an_unwritable_cache_costs_the_history_only(piped, tmp_path):
    (tmp_path / "file").write_text("a file, not a folder")
    assert "what you type is not kept" in piped("/quit\n", cache=tmp_path / "file")


def test_a_missing_model_is_one_clear_error(tmp_path):
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        run_once("hi", tmp_path, tmp_path, tmp_path)


def test_importing_the_chat_loads_no_jax():
    code = "import nanocode_core.agent.ui, sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
