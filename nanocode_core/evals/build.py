"""The stage `eval`: base, SFT and DPO model on text and tasks that none of them was trained on.

evaluation.json holds under each model's name ("base", "sft", "dpo") `bpb` by validation source,
`rollouts` and `pairs`, for the agents also `tasks` (total), `families` and `soul`. A rate stands
with its numerator and denominator: {"rate", "count", "of"}. transcripts.jsonl holds every played
task. The work is done in small pieces that are saved one by one (saved.py).
"""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanocode_core.agent.dialogue import stop_ids
from nanocode_core.agent.writer import Writer
from nanocode_core.constitution.soul import Rules, Soul
from nanocode_core.constitution.task import Task
from nanocode_core.data.rows import TokenRows
from nanocode_core.evals.agentic import Outcome, by_family, play_batch, read_tasks, summary, tools_used
from nanocode_core.evals.bpb import rollout_bpb, source_bpb
from nanocode_core.evals.pairs import pair_accuracy
from nanocode_core.evals.play import Limits
from nanocode_core.evals.rates import rounded
from nanocode_core.evals.saved import resumed
from nanocode_core.evals.soul import adherence
from nanocode_core.model.gpt import GPT
from nanocode_core.model.weights import load_model
from nanocode_core.tokenizer import Tokenizer
from nanocode_core.training.setup import prepare_jax

if TYPE_CHECKING:
    from nanocode_core.jobs.job import Job

MODELS = {"base": "pretrain", "sft": "sft", "dpo": "dpo"}
"""The stage that trained a model, by the model's name in the evaluation."""
AGENTS = ("sft", "dpo")
"""The models that were trained on conversations, in the order of training."""

Piece = tuple[str, Any]
"""What to measure and on what: ("bpb", source), ("rollouts", file), ("pairs", file), ("tasks", batch)."""


def build(job: "Job") -> dict[str, Any]:
    """Evaluate the three models; the headline figures are dpo's, those of the others end in _sft and _base.

    Raises:
        UserError: the constitution can't be read, or an input artifact does not hold what it should.
    """
    prepare_jax(job.config)
    synthetic = job.inputs["synthetic"].path
    rules = Soul.load(job.config.soul).rules
    sources = TokenRows(job.inputs["tokens"].path).sources
    texts: list[Piece] = [
        *(("bpb", source) for source in sources),
        ("rollouts", synthetic / "held_out_rollouts.parquet"),
        ("pairs", synthetic / "held_out_pairs.parquet"),
    ]
    tasks = read_tasks(synthetic / "held_out.parquet", job.config.eval.tasks)
    size = job.config.eval.batch
    batches: list[Piece] = [("tasks", tasks[first : first + size]) for first in range(0, len(tasks), size)]
    pieces = {name: [*texts, *(batches if name in AGENTS else [])] for name in MODELS}

    done, total = 0, sum(len(of_model) for of_model in pieces.values())
    results: dict[str, list[Any]] = {}
    for name in MODELS:
        subject = Subject(job, name)
        results[name] = []
        for value in resumed(job.work / f"{name}.jsonl", pieces[name], subject.measure):
            results[name].append(value)
            done += 1
            job.progress(done, total, "pieces", name)

    outcomes = {name: [outcome for batch in results[name][len(texts) :] for outcome in batch] for name in AGENTS}
    evaluation = {
        name: {
            "bpb": dict(zip(sources, results[name], strict=False)),
            "rollouts": results[name][len(sources)],
            "pairs": results[name][len(sources) + 1],
            **(_agent(outcomes[name], rules) if name in AGENTS else {}),
        }
        for name in MODELS
    }
    (job.out / "evaluation.json").write_text(json.dumps(rounded(evaluation), indent=1, sort_keys=True) + "\n")
    with (job.out / "transcripts.jsonl").open("w") as file:
        for name in AGENTS:
            for outcome in outcomes[name]:
                file.write(json.dumps({"model": name, **outcome}, ensure_ascii=False, sort_keys=True) + "\n")
    return headline(rounded(evaluation))


class Subject:
    """One model under evaluation; it is loaded when the first piece is measured."""

    def __init__(self, job: "Job", name: str):
        self._job = job
        self._name = name
        self._tokenizer = Tokenizer.load(job.inputs["tokenizer"].path)

    def measure(self, piece: Piece) -> Any:
        """The JSON-able result of a piece; it depends on model and piece alone."""
        match piece:
            case "bpb", str(source):
                limit = self._job.config.training.validation_tokens
                return source_bpb(self._model, self._job.inputs["tokens"].path, source, limit, self._tokenizer)
            case "rollouts", Path() as file:
                return rollout_bpb(self._model, file, self._tokenizer)
            case "pairs", Path() as file:
                return pair_accuracy(self._model, file, self._tokenizer)
            case "tasks", tasks:
                return self._play(tasks)
        raise ValueError(f"no such piece: {piece[0]}")

    @cached_property
    def _used(self) -> dict[str, list[str]]:
        return tools_used(self._job.inputs["synthetic"].path / "held_out_rollouts.parquet")

    @cached_property
    def _model(self) -> GPT:
        return load_model(self._job.inputs[MODELS[self._name]].path)

    @cached_property
    def _writer(self) -> Writer:
        return Writer(self._model, stop_ids(self._tokenizer), slots=self._job.config.eval.batch)

    def _play(self, tasks: Sequence[Task]) -> list[Outcome]:
        config, context = self._job.config.eval, self._writer.context
        limits = Limits(context, min(config.max_new_tokens, context // 5), config.max_turns, config.bash_seconds)
        self._writer.clear()

        def write(prompts: Sequence[list[int] | None]) -> list[list[int]]:
            return self._writer.write(prompts, limits.max_new)

        outcomes = play_batch(tasks, write, self._tokenizer, limits, self._job.work / "scratch")
        return [{**outcome, "solution": self._used.get(outcome["id"], outcome["solution"])} for outcome in outcomes]


def headline(evaluation: dict[str, Any]) -> dict[str, Any]:
    """The flat figures of a record: of dpo under their own names, of the models before it with a suffix."""
    flat: dict[str, Any] = {}
    for name in reversed(MODELS):
        of_model, suffix = evaluation[name], "" if name == "dpo" else f"_{name}"
        if name in AGENTS:
            for figure in ("task_success", "valid_call_rate", "right_tool_rate"):
                flat[figure + suffix] = of_model["tasks"][figure]["rate"]
            flat["lowercase_rate" + suffix] = of_model["soul"]["lowercase_rate"]["rate"]
            flat["tasks" + suffix] = of_model["tasks"]["tasks"]
        flat["pair_accuracy" + suffix] = of_model["pairs"]["rate"]
        flat["rollout_bpb" + suffix] = of_model["rollouts"]["bpb"]
        for source, measured in of_model["bpb"].items():
            flat[f"bpb_{source}{suffix}"] = measured["bpb"]
    return flat


def _agent(outcomes: Sequence[Outcome], rules: Rules) -> dict[str, Any]:
    return {"tasks": summary(outcomes), "families": by_family(outcomes), "soul": adherence(outcomes, rules)}
