"""Tasks of the real families, played by scripted and by wild models in the real sandbox."""

import random

import pytest
from tokenizers import Tokenizer as Backend

from nanocode_core.agent.dialogue import stop_ids
from nanocode_core.constitution.families import FAMILIES
from nanocode_core.constitution.task import Task, UserAction
from nanocode_core.evals.agentic import by_family, play_batch, summary
from nanocode_core.evals.play import Limits
from nanocode_core.tokenizer import Tokenizer, ToolCall, Turn, render_turn
from nanocode_core.tokenizer.train import train

TASKS = [family.task(7, 0) for family in FAMILIES.values()]
LIMITS = Limits(context=2_000, max_new=400, max_turns=6, bash_seconds=5)


@pytest.fixture(scope="module")
def tokenizer():
    backend: Backend = train([task.request + task.answer for task in TASKS], 500)
    return Tokenizer(backend)


def turn(tokenizer, text, call=None):
    return render_turn(Turn("assistant", text, call), tokenizer)[1:]


def play(tokenizer, tmp_path, tasks, scripts, limits=LIMITS):
    """Play tasks, each with the ids of its turns given in advance."""
    pending = [list(script) for script in scripts]

    def write(prompts):
        assert all(prompt is None or prompt[-1] == tokenizer.assistant_start for prompt in prompts)
        return [[] if prompt is None else pending[slot].pop(0) for slot, prompt in enumerate(prompts)]

    outcomes = play_batch(tasks, write, tokenizer, limits, tmp_path / "scratch")
    assert not (tmp_path / "scratch").exists()
    return outcomes


def solution(tokenizer, task):
    return [*(turn(tokenizer, "ok", call) for call in task.solution), turn(tokenizer, task.answer)]


PLAIN = [task for task in TASKS if not task.user]


def test_known_solutions_solve_their_tasks(tokenizer, tmp_path):
    outcomes = play(tokenizer, tmp_path, PLAIN, [solution(tokenizer, task) for task in PLAIN])
    assert [outcome["reason"] for outcome in outcomes] == [""] * len(PLAIN)
    assert all(outcome["solved"] for outcome in outcomes)
    figures = summary(outcomes)
    calls = sum(len(task.solution) for task in PLAIN)
    assert figures["task_success"] == {"rate": 1.0, "count": len(PLAIN), "of": len(PLAIN)}
    assert figures["valid_call_rate"] == figures["right_tool_rate"] == {"rate": 1.0, "count": calls, "of": calls}
    assert set(by_family(outcomes)) == {task.family for task in PLAIN}


def test_doing_nothing_solves_nothing(tokenizer, tmp_path):
    outcomes = play(tokenizer, tmp_path, PLAIN, [[turn(tokenizer, "all done")] for _ in PLAIN])
    assert not any(outcome["solved"] for outcome in outcomes)
    assert all(outcome["reason"] for outcome in outcomes)
    figures = summary(outcomes)
    assert figures["valid_call_rate"] == {"rate": None, "count": 0, "of": 0}
    assert figures["right_tool_rate"]["rate"] == 0


READ = ToolCall("Read", {"file_path": "a.txt"})
SMALL = Task(
    id="small-000000",
    family="small",
    request="what is in a.txt?",
    files={"a.txt": "forty\n"},
    check=({"kind": "answer", "contains": ["forty"]},),
    solution=(READ,),
    answer="forty",
)


def one(tokenizer, tmp_path, turns, task=SMALL, limits=LIMITS):
    return play(tokenizer, tmp_path, [task], [turns], limits)[0]


def test_invalid_and_malformed_calls_are_told_apart_counted_and_can_be_recovered_from(tokenizer, tmp_path):
    broken = [tokenizer.tool_call_start, *tokenizer.encode("Read"), tokenizer.tool_arg, tokenizer.assistant_end]
    turns = [
        turn(tokenizer, "", ToolCall("Fetch", {"url": "x"})),
        broken,
        turn(tokenizer, "", ToolCall("Read", {"file_path": "b.txt"})),
        turn(tokenizer, "", READ),
        turn(tokenizer, "forty"),
    ]
    outcome = one(tokenizer, tmp_path, turns)
    assert outcome["solved"]
    assert [(a["tool"], a["fault"] is None, a["failed"]) for a in outcome["attempts"]] == [
        ("Fetch", False, True),
        ("", False, True),
        ("Read", True, True),
        ("Read", True, False),
    ]
    assert list(outcome["faults"]) == ["3"]
    figures = summary([outcome])
    assert figures["valid_call_rate"] == {"rate": 0.5, "count": 2, "of": 4}
    assert figures["right_tool_rate"] == {"rate": 0.0, "count": 0, "of": 4}
    assert figures["recovered_rate"] == {"rate": 1.0, "count": 1, "of": 1}
    assert figures["turns"] == 5
    results = [t["text"] for t in outcome["conversation"]["turns"] if t["role"] == "tool"]
    assert results[0].startswith("error: unknown tool")
    assert results[1].startswith("error: the call could not be read")
    assert results[2] == "error: no such file: b.txt"
    assert results[3] == "    1→forty"


def test_the_scripted_user_rejects_once_and_says_what_instead(tokenizer, tmp_path):
    task = Task(**{**vars(SMALL), "user": (UserAction("Bash", "just read it"), UserAction("end", "are you sure?"))})
    bash = ToolCall("Bash", {"command": "rm a.txt"})
    turns = [
        turn(tokenizer, "", bash),
        turn(tokenizer, "", READ),
        turn(tokenizer, "forty"),
        turn(tokenizer, "yes, forty"),
    ]
    outcome = one(tokenizer, tmp_path, turns, task)
    talk = [(t["role"], t["text"]) for t in outcome["conversation"]["turns"]]
    assert talk[2:4] == [("tool", "rejected by user"), ("user", "just read it")]
    assert talk[-3:] == [("assistant", "forty"), ("user", "are you sure?"), ("assistant", "yes, forty")]
    assert outcome["solved"]
    assert [a["failed"] for a in outcome["attempts"]] == [False, False]


def test_the_turn_limit_ends_a_task_and_is_its_reason(tokenizer, tmp_path):
    outcome = one(tokenizer, tmp_path, [turn(tokenizer, "", READ)] * 6)
    assert not outcome["solved"]
    assert outcome["turns"] == 6
    assert outcome["reason"].startswith("not done after 6 turns; ")


def test_a_request_beyond_the_context_fails_with_its_reason(tokenizer, tmp_path):
    outcome = one(
        tokenizer, tmp_path, [], limits=Limits(64, 10, 6, 5), task=Task(**{**vars(SMALL), "request": "x " * 99})
    )
    assert not outcome["solved"]
    assert "keep it below" in outcome["reason"]


def test_wild_models_break_nothing_and_come_out_the_same_twice(tokenizer, tmp_path):
    """Random ids, with the ids of calls and ends made frequent; files outside the projects stay untouched."""
    outside = tmp_path / "outside.txt"
    outside.write_text("safe")
    stops = stop_ids(tokenizer)

    def wild(seed):
        rng = random.Random(seed)
        t = tokenizer
        starts = [
            [],
            [t.tool_call_start, *t.encode("Read"), t.tool_arg, *t.encode("file_path"), t.tool_val],
            [t.tool_call_start, *t.encode("Bash"), t.tool_arg, *t.encode("command"), t.tool_val, *t.encode("echo ")],
            [t.tool_call_start, *t.encode("Edit"), t.tool_arg, *t.encode("file_path"), t.tool_val, *t.encode("../")],
        ]
        ends = [[t.assistant_end], [t.tool_call_end, t.assistant_end], [t.user_start]]

        def write(prompts):
            out = []
            for _ in prompts:
                ids = [*rng.choice(starts), *(rng.randrange(t.vocabulary) for _ in range(8)), *rng.choice(ends)]
                first = next(place for place, id_ in enumerate(ids) if id_ in stops)
                out.append(ids[: first + 1])
            return out

        return play_batch(TASKS, write, tokenizer, LIMITS, tmp_path / "scratch")

    assert wild(1) == wild(1)
    assert outside.read_text() == "safe"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outside.txt"]
