import dataclasses
import json
from collections import Counter

import openai
import pytest

from nanocode_core.agent.sandbox import Sandbox
from nanocode_core.config import PROJECT
from nanocode_core.constitution.critic import critique
from nanocode_core.constitution.families import FAMILIES
from nanocode_core.constitution.flaws import draft, planted
from nanocode_core.constitution.prompts import Prompts, task_from_json
from nanocode_core.constitution.rollout import Episode
from nanocode_core.constitution.scripted import BadRequest, answer
from nanocode_core.constitution.soul import Soul, lowercase_prose
from nanocode_core.constitution.teacher import scripted_server
from nanocode_core.tokenizer.conversation import Turn

SOUL = Soul.load(PROJECT / "SOUL.md")
PROMPTS = Prompts(SOUL, 0.7, 0.2)


def ask(request) -> dict:
    return answer({"messages": request.messages, "response_format": request.response_format})


def test_every_planted_flaw_is_found_where_it_is(tmp_path):
    """The critique, or for a wrong result the task's check, finds each flaw; drafts without one are faultless."""
    seen = Counter[str]()
    with Sandbox() as sandbox:
        for family in FAMILIES.values():
            for index in range(16):
                task = family.task(3, index)
                kind = planted(task, 0)
                if kind is not None and seen[f"{kind} {family.name}"] >= 2:
                    continue
                seen[f"{kind} {family.name}"] += 1
                episode = Episode(task, tmp_path / "s", sandbox)
                while not episode.done:
                    episode.step(draft(task, episode.turns, SOUL.rules, 0))
                found = critique(task, episode.turns, SOUL.rules)
                if kind is None or kind == "wrong_old":
                    assert (found["rating"], found["reasons"], episode.failures()) == (10, [], []), (task.id, kind)
                else:
                    assert found["rating"] < 9, (task.id, kind, episode.turns)
                    assert found["reasons"]
                    assert episode.turns[found["first_bad_turn"]].role == "assistant"
    kinds = {key.split()[0] for key in seen}
    assert kinds >= {
        *("None", "capitals", "praise", "apology", "offer", "long", "question", "claim", "extra"),
        *("unread", "repeat", "guess"),
    }


def test_a_wrong_edit_is_recovered_from(tmp_path):
    tasks = (family.task(0, index) for index in range(400) for family in FAMILIES.values())
    task = next(task for task in tasks if planted(task, 0) == "wrong_old" and task.family == "fix_operator")
    with Sandbox() as sandbox:
        episode = Episode(task, tmp_path / "s", sandbox)
        while not episode.done:
            episode.step(draft(task, episode.turns, SOUL.rules, 0))
        assert any(turn.text.startswith("error: old_string not found") for turn in episode.turns)
        assert episode.failures() == []


def test_the_server_speaks_to_the_plain_client():
    with scripted_server() as endpoint:
        client = openai.OpenAI(base_url=endpoint.base_url, api_key="none")
        assert [model.id for model in client.models.list()] == ["scripted"]
        request = PROMPTS.tasks(FAMILIES["rename_function"], 0, 5, 3)
        completion = client.chat.completions.create(
            model="scripted",
            messages=request.messages,
            response_format=request.response_format,
        )
        content = json.loads(completion.choices[0].message.content)
        tasks = [task_from_json(value, "rename_function", 5 + n) for n, value in enumerate(content["tasks"])]
        assert tasks == [FAMILIES["rename_function"].task(0, number) for number in (5, 6, 7)]
        with pytest.raises(openai.BadRequestError, match="scripted teacher"):
            client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "hi"}])


def test_answers_are_a_function_of_the_request():
    task = FAMILIES["read_value"].task(0, 1)
    request = PROMPTS.turn(task, [Turn("user", task.request)], 0, [])
    assert ask(request) == ask(request)
    with pytest.raises(BadRequest):
        ask(dataclasses.replace(request, system="be nice"))
    with pytest.raises(BadRequest):
        ask(dataclasses.replace(request, user="{}"))


def test_soul_edits_change_voice_and_critique():
    task = FAMILIES["read_value"].task(0, 1)
    turns = [Turn("user", task.request)]
    loud = Prompts(Soul.of(SOUL.text.replace("lowercase prose: yes", "lowercase prose: no")), 0.7, 0.2)
    assert lowercase_prose(ask(PROMPTS.turn(task, turns, 2, []))["text"])
    assert not lowercase_prose(ask(loud.turn(task, turns, 2, []))["text"])
    spoken = [Turn("user", "hi"), Turn("assistant", "Hello there, captain.")]
    talk = FAMILIES["smalltalk"].task(0, 0)
    assert ask(PROMPTS.critique(talk, spoken))["reasons"] == ["prose is not lowercase"]
    assert ask(loud.critique(talk, spoken))["reasons"] == []
    strict = Prompts(Soul.of(SOUL.text.replace('"as an ai"', '"captain"')), 0.7, 0.2)
    assert ask(strict.critique(talk, spoken))["reasons"] == ["says 'captain'", "prose is not lowercase"]
