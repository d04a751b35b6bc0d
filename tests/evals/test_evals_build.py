"""The whole stage on real artifacts in a real store, with three small models of random weights."""

import json
import random
import re
import subprocess
import sys
import time
from dataclasses import dataclass

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flax import nnx

from nanocode_core.agent.sandbox import Sandbox
from nanocode_core.agent.tools import Tools
from nanocode_core.config import load_config
from nanocode_core.constitution.build import PAIR, ROLLOUT, write_tasks
from nanocode_core.constitution.families import FAMILIES
from nanocode_core.constitution.rollout import lay_out, solution_turns
from nanocode_core.constitution.soul import soul_identity
from nanocode_core.data.build import build as build_tokens
from nanocode_core.errors import UserError
from nanocode_core.evals import build as evals
from nanocode_core.jobs.job import Job
from nanocode_core.jobs.spec import JobSpec
from nanocode_core.jobs.stage import Stage, plan
from nanocode_core.model.gpt import GPT
from nanocode_core.model.shape import Shape
from nanocode_core.model.weights import save_model
from nanocode_core.store import Store
from nanocode_core.tokenizer import Conversation, Tokenizer, Turn, to_json, turn_to_json
from nanocode_core.tokenizer.train import train

TASKS = [FAMILIES[name].task(3, number) for name in list(FAMILIES)[:5] for number in range(2)]
INPUTS = ("pretrain", "sft", "dpo", "synthetic", "tokenizer", "tokens")
SETTINGS = ["eval.tasks=6", "eval.batch=4", "eval.max_turns=3", "eval.max_new_tokens=24", "model.sequence=256"]


def stage(name, inputs=(), extra=None):
    return Stage(name, 1, f"nanocode_core.{name}:build", inputs, ("seed",), extra or (lambda config: {}))


STAGES = [
    stage("corpus"),
    stage("tokenizer"),
    stage("tokens"),
    *(stage(name) for name in ("pretrain", "sft", "dpo")),
    stage("synthetic", extra=soul_identity),
    Stage("eval", 1, "nanocode_core.evals.build:build", INPUTS, ("eval", "seed"), soul_identity),
]


@dataclass
class World:
    """A store with everything the stage reads."""

    config: object
    store: Store

    def planned(self, name):
        return plan(STAGES, self.config, self.store)[name]

    def job(self, folder):
        planned = self.planned("eval")
        inputs = {name: self.store.open(name, key) for name, key in planned.inputs.items()}
        work, out = folder / "work", folder / "out"
        for made in (work, out):
            made.mkdir(parents=True, exist_ok=True)
        return Job("eval", planned.fingerprint, self.config, inputs, work, out, self.store)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    config = load_config("smoke", [f"run.store={root / 'store'}", f"run.cache={root / 'cache'}", *SETTINGS])
    made = World(config, Store(config.run.store))

    def publish(name, write):
        planned = made.planned(name)
        out = made.store.work_dir(name, planned.fingerprint) / "out"
        out.mkdir(parents=True)
        write(out)
        made.store.publish(name, 1, planned.fingerprint, planned.identity, {}, out, {}, {"finished": 0})
        return made.store.open(name, planned.fingerprint)

    texts = [f"{task.request} {task.answer} {' '.join(task.files.values())}" for task in TASKS]
    corpus = publish("corpus", lambda out: write_corpus(out, texts))
    tokenizer = publish("tokenizer", lambda out: train(texts, 500).save(str(out / "tokenizer.json")))

    def tokens(out):
        (root / "tokens").mkdir()
        inputs = {"corpus": corpus, "tokenizer": tokenizer}
        build_tokens(Job("tokens", "-", config, inputs, root / "tokens", out, made.store))

    publish("tokens", tokens)
    vocabulary = Tokenizer.load(tokenizer.path).vocabulary
    for seed, name in enumerate(("pretrain", "sft", "dpo")):
        publish(name, lambda out, seed=seed: save_model(wild_model(vocabulary, seed), out))
    publish("synthetic", lambda out: write_synthetic(out, root / "scratch"))
    return made


def write_corpus(out, texts):
    for folder in ("train", "validation"):
        (out / folder).mkdir()
    rows = [{"text": text, "source": "s", "content": "code"} for text in texts * 20]
    pq.write_table(pa.Table.from_pylist(rows), out / "train" / "shard_00000.parquet")
    for source in ("code", "prose"):
        pq.write_table(pa.table({"text": texts}), out / "validation" / f"{source}.parquet")


def wild_model(vocabulary, seed):
    """Weights far from the initial ones, so that what it writes depends on all it has read."""
    model = GPT(Shape(2, 32, 2, 2, 2, vocabulary, 256, 10_000.0, 15.0, "float32"), seed)
    graph, params = nnx.split(model, nnx.Param)
    rng = np.random.default_rng(seed)
    return nnx.merge(graph, jax.tree.map(lambda x: x + rng.normal(0, 0.3, x.shape).astype("float32"), params))


def write_synthetic(out, scratch):
    rollouts, pairs = [], []
    with Sandbox() as sandbox:
        for task in TASKS:
            lay_out(task, scratch)
            results = [Tools(scratch, sandbox).run(call) for call in task.solution]
            turns = tuple(solution_turns(task, results))
            names = {"id": task.id, "task": task.id, "family": task.family}
            rollouts.append({**names, "conversation": json.dumps(to_json(Conversation(turns)))})
            prompt, rest = json.dumps(to_json(Conversation(turns[:1]))), [turn_to_json(turn) for turn in turns[1:]]
            worse = [turn_to_json(Turn("assistant", "Certainly! Great question."))]
            pairs.append({**names, "prompt": prompt, "chosen": json.dumps(rest), "rejected": json.dumps(worse)})
    pq.write_table(pa.Table.from_pylist(rollouts, ROLLOUT), out / "held_out_rollouts.parquet")
    pq.write_table(pa.Table.from_pylist(pairs, PAIR), out / "held_out_pairs.parquet")
    write_tasks(out / "held_out.parquet", TASKS)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    headline = evals.build(world.job(folder))
    return headline, contents(folder / "out")


def test_all_figures_are_there_for_every_model(undisturbed):
    headline, files = undisturbed
    assert set(files) == {"evaluation.json", "transcripts.jsonl"}
    evaluation = json.loads(files["evaluation.json"])
    assert set(evaluation) == {"base", "sft", "dpo"}
    for name, figures in evaluation.items():
        assert set(figures["bpb"]) == {"code", "prose"}
        assert all(source["bpb"] > 1 and source["bytes"] > 100 for source in figures["bpb"].values())
        assert figures["pairs"]["of"] == len(TASKS)
        assert ("tasks" in figures) == (name != "base")
    assert evaluation["dpo"]["tasks"]["tasks"] == 6
    assert sum(family["tasks"] for family in evaluation["dpo"]["families"].values()) == 6
    assert len(evaluation["dpo"]["families"]) == 5
    expected = {"task_success", "valid_call_rate", "right_tool_rate", "lowercase_rate", "pair_accuracy", "bpb_code"}
    assert expected | {f"{figure}_sft" for figure in expected} | {"pair_accuracy_base", "bpb_code_base"} <= set(
        headline
    )
    assert headline["bpb_code"] == evaluation["dpo"]["bpb"]["code"]["bpb"]
    assert not re.search(rb"\d\.\d{7}", files["evaluation.json"])


def test_every_played_task_has_its_transcript(undisturbed):
    lines = [json.loads(line) for line in undisturbed[1]["transcripts.jsonl"].splitlines()]
    assert [line["model"] for line in lines] == ["sft"] * 6 + ["dpo"] * 6
    for line in lines:
        task = next(task for task in TASKS if task.id == line["id"])
        assert line["conversation"]["turns"][0] == {"role": "user", "text": task.request, "call": None}
        assert any(turn["role"] == "assistant" for turn in line["conversation"]["turns"])
        assert line["solved"] == (line["reason"] == "")


@pytest.mark.parametrize("seed", range(3))
def test_a_run_that_died_goes_on_and_ends_with_the_same_bytes(world, undisturbed, tmp_path, monkeypatch, seed):
    """It dies twice, each time somewhere inside a piece, which leaves half a line and projects behind."""
    rng = random.Random(seed)
    measured = []

    for _ in range(2):
        left = rng.randrange(1, 6)

        def dying(subject, piece, original=evals.Subject.measure):
            nonlocal left
            left -= 1
            if left == 0:
                (tmp_path / "work" / "scratch" / "0000").mkdir(parents=True, exist_ok=True)
                (tmp_path / "work" / "scratch" / "0000" / "stray.py").write_text("1")
                with (tmp_path / "work" / f"{subject._name}.jsonl").open("ab") as file:
                    file.write(b'{"bpb": 1.2')
                raise KeyboardInterrupt
            measured.append((subject._name, str(piece)))
            return original(subject, piece)

        with monkeypatch.context() as patch:
            patch.setattr(evals.Subject, "measure", dying)
            with pytest.raises(KeyboardInterrupt):
                evals.build(world.job(tmp_path))
    assert len(measured) == len(set(measured))
    assert evals.build(world.job(tmp_path)) == undisturbed[0]
    assert contents(tmp_path / "out") == undisturbed[1]


def test_an_empty_constitution_is_bad_input(world, tmp_path):
    (tmp_path / "SOUL.md").write_text("\n")
    job = world.job(tmp_path)
    job.config = job.config.model_copy(update={"soul": str(tmp_path / "SOUL.md")})
    with pytest.raises(UserError, match="is empty"):
        evals.build(job)


@pytest.mark.slow
def test_kill_9_of_the_worker_and_a_new_start_give_the_same_artifact(world, undisturbed, tmp_path):
    planned = world.planned("eval")
    work = world.store.work_dir("eval", planned.fingerprint)
    spec = tmp_path / "spec.json"
    config = world.config.model_copy(update={"run": world.config.run.model_copy(update={"lease_seconds": 2})})
    spec.write_text(JobSpec.of(planned, config).model_dump_json())
    command = [sys.executable, "-m", "nanocode_core.jobs.worker", spec]
    for saves in ("base.jsonl", "sft.jsonl"):
        worker = subprocess.Popen(command, stdin=subprocess.PIPE)
        while worker.poll() is None and not (work / saves).exists():
            time.sleep(0.05)
        worker.kill()
        worker.wait()
        assert world.store.record("eval", planned.fingerprint) is None
    with subprocess.Popen(command, stdin=subprocess.PIPE) as worker:
        assert worker.wait(120) == 0
    artifact = world.store.open("eval", planned.fingerprint)
    assert {name: data for name, data in contents(artifact.path).items() if name in undisturbed[1]} == undisturbed[1]
    assert artifact.record.metrics == undisturbed[0]
