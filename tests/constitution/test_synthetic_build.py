import asyncio
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pyarrow.parquet as pq
import pytest

from nanocode_core.config import PROJECT, load_config
from nanocode_core.constitution.build import build
from nanocode_core.constitution.families import FAMILIES
from nanocode_core.constitution.prompts import Request
from nanocode_core.constitution.soul import Soul, soul_identity, violations
from nanocode_core.constitution.task import Task
from nanocode_core.constitution.teacher import Answers, Endpoint, Teacher, remote_endpoint
from nanocode_core.errors import UserError
from nanocode_core.jobs.job import Job
from nanocode_core.store import Store
from nanocode_core.tokenizer.conversation import from_json, turn_from_json

ROLLOUTS, HELD_OUT = 36, 18
RUN = """
    import sys
    from pathlib import Path
    from nanocode_core.jobs import tether
    from nanocode_core.config import load_config
    from nanocode_core.constitution.build import build
    from nanocode_core.jobs.job import Job
    from nanocode_core.store import Store
    tether.hold()
    work = Path(sys.argv[1])
    config = load_config("demo", sys.argv[2:])
    build(Job("synthetic", "test", config, {}, work, work / "out", Store(str(work / "store"))))
"""


def settings(*more: str) -> list[str]:
    return [f"synthetic.rollouts={ROLLOUTS}", f"synthetic.held_out={HELD_OUT}", *more]


def run(work: Path, *more: str) -> dict:
    (work / "out").mkdir(parents=True, exist_ok=True)
    config = load_config("demo", settings(*more))
    return build(Job("synthetic", "test", config, {}, work, work / "out", Store(str(work / "store"))))


def digests(work: Path) -> dict[str, str]:
    files = [path for path in sorted((work / "out").iterdir()) if path.is_file()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    work = tmp_path_factory.mktemp("synthetic")
    metrics = run(work)
    assert metrics["rollouts"] == ROLLOUTS
    assert metrics["held_out"] == HELD_OUT
    return work


def table(work: Path, name: str) -> list[dict]:
    return pq.read_table(work / "out" / f"{name}.parquet").to_pylist()


def test_families_are_balanced_and_rollouts_keep_the_soul(made):
    soul = Soul.load(PROJECT / "SOUL.md")
    rows = table(made, "rollouts")
    assert Counter(row["family"] for row in rows) == dict.fromkeys(FAMILIES, ROLLOUTS // len(FAMILIES))
    assert len({row["id"] for row in rows}) == ROLLOUTS
    for row in rows:
        assert row["split"] == "train"
        assert row["rating"] >= 9
        assert violations(from_json(json.loads(row["conversation"])), soul) == []


def test_held_out_tasks_are_unlike_the_training_tasks(made):
    held = [Task.from_json(json.loads(row["task"])) for row in table(made, "held_out")]
    assert Counter(task.family for task in held) == dict.fromkeys(FAMILIES, HELD_OUT // len(FAMILIES))
    trained = [FAMILIES[row["family"]].task(0, int(row["task"].rpartition("-")[2])) for row in table(made, "rollouts")]
    assert {task.key() for task in held}.isdisjoint(task.key() for task in trained)
    assert [row["task"] for row in table(made, "held_out_rollouts")] == [task.id for task in held]


def test_pairs_share_their_prompt_and_differ_after_it(made):
    pairs = table(made, "pairs")
    assert len(pairs) >= ROLLOUTS // 6
    rollouts = {row["id"]: from_json(json.loads(row["conversation"])) for row in table(made, "rollouts")}
    for pair in pairs:
        prompt = from_json(json.loads(pair["prompt"])).turns
        chosen, rejected = (tuple(map(turn_from_json, json.loads(pair[side]))) for side in ("chosen", "rejected"))
        assert (*prompt, *chosen) == rollouts[pair["id"]].turns
        assert prompt[-1].role in ("user", "tool")
        assert chosen[0] != rejected[0]
        assert chosen[0].role == rejected[0].role == "assistant"


def test_statistics_add_up(made):
    statistics = json.loads((made / "out" / "statistics.json").read_text())
    assert statistics["teacher"] == "scripted"
    assert list(statistics["families"]) == list(FAMILIES)
    total = statistics["total"]
    assert total["pairs"] == len(table(made, "pairs"))
    assert 0.4 < total["accepted_first"] < 0.9
    assert sum(family["rollouts"] for family in statistics["families"].values()) == ROLLOUTS
    assert total["rejected_for"]


def test_the_same_bytes_whatever_the_concurrency(made, tmp_path):
    run(tmp_path, "synthetic.concurrency=3")
    assert digests(tmp_path) == digests(made)


def test_killed_at_random_and_started_again(made, tmp_path):
    dice = random.Random(1)
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", textwrap.dedent(RUN), str(tmp_path), *settings()]
    kept = 0
    for _ in range(2):
        process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
        answers = tmp_path / "answers.jsonl"
        goal = kept + dice.randrange(50, 250) * 100
        while process.poll() is None and (answers.stat().st_size if answers.exists() else 0) < goal:
            time.sleep(0.02)
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
        _, alive = psutil.wait_procs(children, timeout=10)
        assert alive == []
        size = answers.stat().st_size
        assert size >= kept
        kept = size
    with answers.open("ab") as file:
        file.write(b'{"key": "cut sho')
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert digests(tmp_path) == digests(made)


def test_a_restart_asks_nothing_again(made, capsys):
    before = digests(made)
    run(made)
    assert "0 requests to the teacher in this start" in capsys.readouterr().out
    assert digests(made) == before


def test_a_changed_soul_changes_identity_and_data(made, tmp_path):
    soul = tmp_path / "SOUL.md"
    text = (PROJECT / "SOUL.md").read_text()
    soul.write_text(text.replace("lowercase prose: yes", "lowercase prose: no").replace('"as an ai"', '"done"'))
    changed = load_config("demo", [f"soul={soul}"])
    assert soul_identity(changed) != soul_identity(load_config("demo"))
    run(tmp_path, f"soul={soul}")
    spoken = [
        turn.text
        for row in table(tmp_path, "rollouts")
        for turn in from_json(json.loads(row["conversation"])).turns
        if turn.role == "assistant"
    ]
    assert not any("done" in text.lower().split(",")[0] for text in spoken)
    assert sum(text[0].isupper() for text in spoken) > len(spoken) / 2


def test_answers_survive_a_cut_line(tmp_path):
    answers = Answers(tmp_path / "a.jsonl")
    answers.keep("one", "1")
    answers.close()
    with (tmp_path / "a.jsonl").open("ab") as file:
        file.write(b'{"key": "two", "answer": "2"}')
    again = Answers(tmp_path / "a.jsonl")
    assert (len(again), again.get("one"), again.get("two")) == (1, "1", None)
    again.keep("three", "3")
    again.close()
    assert len(Answers(tmp_path / "a.jsonl")) == 2


def test_a_remote_teacher_needs_a_place_and_its_key_stays_hidden(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENROUTER_API_KEY", raising=False)
    with pytest.raises(UserError, match=r"synthetic\.base_url"):
        remote_endpoint("big-model", None)
    assert remote_endpoint("big-model", "http://localhost:8000/v1").key == "none"
    monkeypatch.setenv("OPENROUTER_API_KEY", "sk-secret")
    endpoint = remote_endpoint("big-model", None)
    assert endpoint.base_url == "https://openrouter.ai/api/v1"
    assert "sk-secret" not in f"{endpoint}{endpoint!r}"


def test_an_unreachable_teacher_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr("nanocode_core.constitution.teacher.RETRIES", 0)
    with pytest.raises(UserError, match=r"does not answer .*synthetic\.base_url"):
        run(tmp_path, "synthetic.teacher=big-model", "synthetic.base_url=http://127.0.0.1:9/v1")
    assert list((tmp_path / "out").iterdir()) == []


@contextlib.contextmanager
def listening(port: int = 0):
    """The scripted teacher, as a server that the test may kill; its process and its port."""
    command = [sys.executable, "-m", "nanocode_core.constitution.scripted", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process, urlsplit(json.loads(process.stdout.readline())["base_url"]).port
        finally:
            process.kill()


def test_a_teacher_that_has_answered_is_waited_for(made, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("nanocode_core.constitution.teacher.RETRIES", 0)
    monkeypatch.setattr("nanocode_core.constitution.teacher.PAUSE", 0.1)
    answers = tmp_path / "answers.jsonl"

    over = threading.Event()

    def preempt(process: subprocess.Popen, port: int) -> None:
        while not answers.exists() or answers.stat().st_size < 10_000:
            if over.wait(0.01):
                return
        process.kill()
        time.sleep(1)
        with listening(port):
            over.wait()

    with listening() as (process, port):
        thread = threading.Thread(target=preempt, args=(process, port))
        thread.start()
        try:
            run(tmp_path, f"synthetic.base_url=http://127.0.0.1:{port}/v1")
        finally:
            over.set()
            thread.join()
    assert digests(tmp_path) == digests(made)
    assert capsys.readouterr().out.count("is away (Connection error.): waiting up to 1800 s") == 1
    with pytest.raises(UserError, match=r"does not answer .*synthetic\.base_url"):  # its patience has an end
        run(
            tmp_path,
            "synthetic.rollouts=72",
            "synthetic.patience_seconds=1",
            f"synthetic.base_url=http://127.0.0.1:{port}/v1",
        )


class Failing(BaseHTTPRequestHandler):
    """Answers one request, and from then on that it is overloaded."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.server.posts += 1
        self.send_response(200 if self.server.posts == 1 else 503)
        body = json.dumps({"choices": [{"message": {"content": "{}"}}]}).encode()
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


def test_a_teacher_that_keeps_failing_is_waited_for_as_long_as_patience_lasts(tmp_path, monkeypatch):
    for name, value in {"RETRIES": 0, "PAUSE": 0.05, "TELL": 0.5}.items():
        monkeypatch.setattr(f"nanocode_core.constitution.teacher.{name}", value)
    lines: list[str] = []

    async def ask_twice(url: str) -> None:
        answers = Answers(tmp_path / "answers.jsonl")
        teacher = Teacher(Endpoint("big-model", url, "none"), answers, 3.0, lines.append)
        try:
            assert await teacher.ask(Request("turn", "system", "first", 0.0)) == {}
            await teacher.ask(Request("turn", "system", "second", 0.0))
        finally:
            await teacher.close()
            answers.close()

    with ThreadingHTTPServer(("127.0.0.1", 0), Failing) as server:
        server.posts = 0
        threading.Thread(target=server.serve_forever).start()
        begin = time.monotonic()
        try:
            with pytest.raises(UserError, match=r"answers with status 503: .*; what it has answered is kept"):
                asyncio.run(ask_twice(f"http://127.0.0.1:{server.server_port}/v1"))
        finally:
            server.shutdown()
    assert time.monotonic() - begin > 3
    assert 1 <= len(lines) <= (time.monotonic() - begin) / 0.5 + 1
    assert all("is away (status 503: " in line for line in lines)
