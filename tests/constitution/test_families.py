import json
import re

import pytest

from nanocode_core.agent.sandbox import Sandbox
from nanocode_core.config import PROJECT
from nanocode_core.constitution import validators
from nanocode_core.constitution.families import FAMILIES, Past, Voice
from nanocode_core.constitution.families.voice import SITUATIONS
from nanocode_core.constitution.rollout import Episode, verify
from nanocode_core.constitution.soul import Rules, Soul, lowercase_prose, parse_rules, turn_flaws
from nanocode_core.constitution.task import Task
from nanocode_core.tokenizer.conversation import ToolCall, Turn

SOUL = Soul.load(PROJECT / "SOUL.md")


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox() as box:
        yield box


def play(task: Task, episode: Episode, rules: Rules = SOUL.rules) -> Episode:
    while not episode.done:
        assert len(episode.turns) < 24, episode.turns
        episode.step(FAMILIES[task.family].play(task, Past(task, episode.turns, Voice(rules))))
    return episode


def test_there_are_enough_families():
    assert len(FAMILIES) >= 10


@pytest.mark.parametrize("name", FAMILIES)
def test_twenty_tasks_fail_untouched_and_are_solved_by_their_player(name, tmp_path, sandbox):
    family = FAMILIES[name]
    keys = set()
    for index in range(20):
        task = family.task(7, index)
        assert family.task(7, index) == task
        assert Task.from_json(json.loads(json.dumps(task.to_json()))) == task
        assert verify(task, tmp_path / "s", sandbox) == []
        episode = play(task, Episode(task, tmp_path / "s", sandbox))
        assert episode.failures() == []
        assert validators.flaws(episode.conversation, SOUL.rules) == []
        # A token of a small vocabulary is about three characters, a turn has a few of its own.
        size = sum(
            len(t.text) + sum(map(len, t.call.arguments.values())) if t.call else len(t.text) for t in episode.turns
        )
        assert size <= 900
        keys.add(task.key())
    assert len(keys) >= 18


def test_play_reacts_to_what_really_happened(tmp_path, sandbox):
    missing = next(t for t in (FAMILIES["missing_file"].task(0, i) for i in range(50)) if "can't find" in t.answer)
    last = play(missing, Episode(missing, tmp_path / "s", sandbox)).turns[-1]
    assert not re.search(r" is \d", last.text)
    leave = next(t for t in (FAMILIES["rejected_edit"].task(0, i) for i in range(50)) if "left" in t.answer)
    episode = play(leave, Episode(leave, tmp_path / "s", sandbox))
    assert [turn.text for turn in episode.turns if turn.role == "tool"][-1] == "rejected by user"
    assert sum(turn.call is not None and turn.call.name == "Edit" for turn in episode.turns) == 1


def test_checks_tell_wrong_from_right(tmp_path, sandbox):
    task = FAMILIES["read_value"].task(0, 0)
    episode = Episode(task, tmp_path / "s", sandbox)
    episode.step(Turn("assistant", "it's 1000."))
    assert episode.failures()[0].startswith("the answer lacks")
    task = FAMILIES["write_file"].task(0, 0)
    episode = Episode(task, tmp_path / "s", sandbox)
    episode.step(Turn("assistant", "", task.solution[0]))
    episode.step(Turn("assistant", "and one more.", ToolCall("Edit", {"file_path": "more.py", "new_string": ""})))
    episode.step(Turn("assistant", "done."))
    assert episode.failures() == ["more.py was made unasked"]


def test_a_bad_check_fails_instead_of_raising(tmp_path, sandbox):
    task = FAMILIES["read_value"].task(0, 0)
    for check in (
        {},
        {"kind": "none"},
        {"kind": "file", "path": "../x"},
        {"kind": "python"},
        {"kind": "python", "code": 3},
    ):
        broken = Task(**{**vars(task), "check": (check,)})
        assert verify(broken, tmp_path / "s", sandbox)


@pytest.mark.parametrize("situation", SITUATIONS)
def test_every_phrasing_keeps_the_rules(situation):
    for text in SITUATIONS[situation]:
        assert turn_flaws(re.sub(r"\{\w+\}", "x_1", text), SOUL.rules) == []


def test_the_soul_shapes_the_voice():
    rules = parse_rules(
        SOUL.text.replace("lowercase prose: yes", "lowercase prose: no").replace('"as an ai"', '"running"')
    )
    texts = [Voice(rules).say("run", str(n), path="a.py") for n in range(50)]
    assert not any("running" in text.lower() for text in texts)
    assert not any(lowercase_prose(text) for text in texts)
    assert "a.py" in " ".join(texts)
