"""What equal tokens teach: our recipes beside nanochat's own trainer, in bits per byte of held-out text.

    python benchmarks/learning_curve.py --store DIR --results FILE [--peer CHECKOUT --peer-python PYTHON]

Four layers of width 256 with two heads, sequences of 512, batches of 16,384 tokens, the same corpus
(the Python of this machine), tokenizer and number of tokens. Ours is the stage `pretrain`. nanochat
is its unchanged base_train with its defaults: head size, windows, loader, rates, schedule. One thing
is chosen: its rule for the batch gives 131,072 tokens here, which would be 30 steps of which all are
warm-up, so it gets the batch of its own CPU script, 16,384. One thing is done for it: of a document that is
longer than a row its loader takes the beginning and drops the rest, so that it would go over the starts
of this corpus's long files twice; it is given them in pieces of a row, as our loader cuts them. It reads
the pieces in an order drawn from the seed; its initial weights are drawn from the seed too, as are ours.

All are measured by one flat protocol on their final weights: each document of a validation shard
(about 1 MB a source) behind <|bos|>, all in one stream, cut into windows of 512 targets. Each result
is a line of FILE, so a killed benchmark goes on. `--ablate` trains `modern` with one field at a time
(or several joined by +) as `nanocode` has it, or as stated. The last line of stdout is JSON.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from parts.child import run_json

from flows.pipeline import Schedule, prepare, run_stage
from nanocode_core.config import Config, load_config
from nanocode_core.config.recipes import RECIPES
from nanocode_core.data.rows import TokenRows
from nanocode_core.jobs.local import LocalLauncher
from nanocode_core.jobs.stage import plan
from nanocode_core.store import Artifact, Store
from nanocode_core.tokenizer import Tokenizer
from tasks import STAGES

HERE = Path(__file__).parent
SEQUENCE, ROWS = 512, 32
SAMPLE_DOCUMENTS = 400
"""Documents on which both tokenizers must agree before anything is trained."""
CORPUS = (
    "corpus.characters=96000000",
    "corpus.code_share=0.5",
    "corpus.validation_characters=1000000",
    "tokenizer.vocabulary=8192",
    "tokenizer.train_characters=24000000",
)
MODEL = (
    "model.depth=4",
    "model.width=256",
    "model.heads=2",
    f"model.sequence={SEQUENCE}",
    "model.compute=float32",
    f"training.batch_sequences={ROWS}",
    "training.validation_tokens=8192",
    "training.validate_every=1000000",
    "training.sample_every=1000000",
)
PEER_MODEL = ("--depth=4", f"--max-seq-len={SEQUENCE}", f"--device-batch-size={ROWS}", "--device-type=cpu")
PEER_QUIET = ("--eval-every=-1", "--core-metric-every=-1", "--sample-every=-1")


@dataclass(frozen=True)
class Run:
    """One training: `trainer` is nanocode or nanochat, `recipe` ours (the peer has one), `changed` an ablation."""

    trainer: str
    recipe: str
    seed: int
    changed: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The runs of one name differ in their seed only."""
        return " ".join((f"{self.trainer} {self.recipe}".strip(), *self.changed))


@dataclass(frozen=True)
class Ground:
    """What all runs share: the artifacts, and the windows [N, 513] of each validation source."""

    store: Store
    corpus: Artifact
    tokenizer: Artifact
    tokens: Artifact
    windows: Mapping[str, np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", required=True, help="artifact store for corpus, tokenizer and models")
    parser.add_argument("--results", type=Path, required=True, help="file of JSON lines, one a result")
    parser.add_argument("--peer", type=Path, help="a checkout of nanochat")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python with the peer's packages")
    parser.add_argument("--peer-set", action="append", default=[], help="further arguments for base_train (a variant)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tokens", type=int, default=4_000_000)
    parser.add_argument("--recipes", nargs="*", default=["nanocode", "modern"], choices=RECIPES)
    parser.add_argument("--ablate", nargs="*", help="field=value[+field=value]; alone: every field of modern in turn")
    parser.add_argument("--set", action="append", default=[], dest="sets", help="override for all of our runs")
    arguments = parser.parse_args()
    config = load_config("demo", [*CORPUS, *MODEL, f"run.store={arguments.store}", *arguments.sets])
    ground = prepare_ground(config)
    done = read_results(arguments.results)
    results = []
    for run in planned_runs(arguments):
        identity = json.loads(json.dumps({"tokens": ground.tokens.record.fingerprint, **describe(run, arguments)}))
        known = next((line for line in done if line["identity"] == identity), None)
        if known is None:
            train = train_peer if run.trainer == "nanochat" else train_ours
            measured = train(run, ground, arguments)
            known = {"name": run.name, "seed": run.seed, **measured, "identity": identity}
            with arguments.results.open("a") as file:
                file.write(json.dumps(known) + "\n")
        results.append({**known, "name": run.name})
        print(f"{run.name}, seed {run.seed}: {known['bits_per_byte']:.4f} bits per byte", flush=True)
    print(json.dumps(summarize(results)))


def planned_runs(arguments: argparse.Namespace) -> Iterator[Run]:
    """All runs, seed by seed, so that an early end leaves every trainer with some."""
    changes: list[tuple[str, ...]] = []
    if arguments.ablate is not None:
        changes = [tuple(item.split("+")) for item in arguments.ablate] or [(item,) for item in fields_of_modern()]
    for seed in arguments.seeds:
        if arguments.peer:
            yield Run("nanochat", "", seed, tuple(arguments.peer_set))
        for recipe in arguments.recipes:
            yield Run("nanocode", recipe, seed)
        for changed in changes:
            yield Run("nanocode", "modern", seed, changed)


def fields_of_modern() -> list[str]:
    """Every field of model and optimizer that `modern` sets, as an override that gives it `nanocode`'s value."""
    plain = load_config("demo").model_dump(mode="json")
    found = []
    for path in (("model",), ("training", "optimizer")):
        modern, values = RECIPES["modern"], plain
        for part in path:
            modern, values = modern[part], values[part]
        found += [f"{'.'.join(path)}.{field}={json.dumps(values[field])}" for field in modern]
    return found


def prepare_ground(config: Config) -> Ground:
    """Build (or find) corpus, tokenizer and tokens."""
    schedule = prepare(config, ["corpus", "tokenizer", "tokens"])
    for planned in schedule.todo:
        run_stage(planned, schedule, LocalLauncher(), say)
    found = {name: schedule.store.open(name, planned.fingerprint) for name, planned in schedule.planned.items()}
    rows = TokenRows(found["tokens"].path)
    windows = {source: rows.validation(source) for source in rows.sources}
    return Ground(schedule.store, found["corpus"], found["tokenizer"], found["tokens"], windows)


def describe(run: Run, arguments: argparse.Namespace) -> dict[str, Any]:
    """What decides a run's result, besides the tokens."""
    if run.trainer == "nanochat":
        return {"seed": run.seed, "peer": peer_arguments(run, arguments), "documents": "in pieces"}
    config = our_config(run, arguments)
    return {"seed": run.seed, **config.pick("model", "training")}


def our_config(run: Run, arguments: argparse.Namespace) -> Config:
    """The config of one of our runs."""
    sets = [*CORPUS, *MODEL, f"training.steps={steps(arguments)}", f"run.store={arguments.store}", *arguments.sets]
    return load_config("demo", [*sets, f"recipe={run.recipe}", f"seed={run.seed}", *run.changed])


def steps(arguments: argparse.Namespace) -> int:
    """Optimizer steps of every run."""
    return int(arguments.tokens) // (ROWS * SEQUENCE)


def train_ours(run: Run, ground: Ground, arguments: argparse.Namespace) -> dict[str, Any]:
    """The stage `pretrain` on the common tokens, and its model by the flat protocol."""
    from nanocode_core.model.scoring import bits_per_byte, slices
    from nanocode_core.model.weights import load_model
    from nanocode_core.training.objectives import whole_rows

    config = our_config(run, arguments)
    inputs = {"tokenizer": ground.tokenizer.record.fingerprint, "tokens": ground.tokens.record.fingerprint}
    stages = [stage for stage in STAGES if stage.name in (*inputs, "pretrain")]
    planned = plan(stages, config, ground.store, fixed=inputs)
    outcome = run_stage(planned["pretrain"], Schedule(config, ground.store, planned, ()), LocalLauncher(), say)
    model = load_model(ground.store.open("pretrain", outcome.fingerprint).path)
    lengths = Tokenizer.load(ground.tokenizer.path).token_bytes
    sizes = {name: int(lengths[windows[:, 1:]].sum()) for name, windows in ground.windows.items()}
    bits = {
        name: bits_per_byte(model, slices(whole_rows(windows)), lengths) * sizes[name]
        for name, windows in ground.windows.items()
    }
    return {**rates(bits, sizes), "steps": steps(arguments), "minutes": outcome.minutes}


def train_peer(run: Run, ground: Ground, arguments: argparse.Namespace) -> dict[str, Any]:
    """The peer's base_train on the same documents, and its model by the flat protocol."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        arrays: dict[str, Any] = dict(ground.windows)
        np.savez(folder / "windows.npz", **arrays)
        (folder / "sample.json").write_text(json.dumps(tokenizer_sample(ground)))
        child = [arguments.peer_python, str(HERE / "nanochat" / "curve.py"), "--peer", str(arguments.peer.resolve())]
        child += ["--seed", str(run.seed)]
        environment = {"NANOCHAT_BASE_DIR": str(folder / "base")}
        (folder / "base").mkdir()
        places = ["--corpus", str(ground.corpus.path), "--tokenizer", str(ground.tokenizer.path)]
        told = run_json([*child, "prepare", *places, "--sample", str(folder / "sample.json")], environment)
        if told["sample_documents_that_differ"]:
            sys.exit(f"the converted tokenizer encodes {told['sample_documents_that_differ']} documents differently")
        log = arguments.results.with_name(f"{arguments.results.stem}-nanochat-{run.seed}.log")
        trained = run_json([*child, "train", "--", *peer_arguments(run, arguments)], environment, log)
        scored = run_json([*child, "score", "--windows", str(folder / "windows.npz")], environment)
    bits = {name: values["nats"] / math.log(2) for name, values in scored["sources"].items()}
    sizes = {name: values["bytes"] for name, values in scored["sources"].items()}
    return {**rates(bits, sizes), "steps": scored["steps"], "minutes": round(trained["seconds"] / 60, 2)}


def peer_arguments(run: Run, arguments: argparse.Namespace) -> list[str]:
    """The command line of base_train."""
    size = f"--total-batch-size={ROWS * SEQUENCE}"
    return [*PEER_MODEL, size, f"--num-iterations={steps(arguments)}", *PEER_QUIET, *run.changed]


def tokenizer_sample(ground: Ground) -> list[tuple[str, list[int]]]:
    """Training documents with our ids."""
    shard = min((ground.corpus.path / "train").glob("*.parquet"))
    texts = pq.read_table(shard, columns=["text"])["text"].to_pylist()[:SAMPLE_DOCUMENTS]
    tokenizer = Tokenizer.load(ground.tokenizer.path)
    return [(text, tokenizer.encode(text)) for text in texts]


def rates(bits: Mapping[str, float], sizes: Mapping[str, int]) -> dict[str, Any]:
    """Bits per byte of all sources together and of each."""
    by_source = {name: round(bits[name] / sizes[name], 5) for name in sorted(bits)}
    total = round(sum(bits.values()) / sum(sizes.values()), 5)
    return {"bits_per_byte": total, "by_source": by_source, "bytes": sum(sizes.values())}


def read_results(path: Path) -> list[dict[str, Any]]:
    """The results there are; a last line that a kill cut short counts as none."""
    lines = path.read_text().splitlines() if path.exists() else []
    whole = [line for line in lines if line.endswith("}")]
    return [json.loads(line) for line in whole]


def summarize(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Print the table; mean and spread of each name, and what had to hold."""
    names = dict.fromkeys(line["name"] for line in results)
    table: dict[str, Any] = {}
    print("\n| | bits per byte, mean | spread (highest - lowest) | seeds | minutes |\n|---|---|---|---|---|")
    for name in names:
        values = [line["bits_per_byte"] for line in results if line["name"] == name]
        minutes = statistics.mean(line["minutes"] for line in results if line["name"] == name)
        mean, spread = statistics.mean(values), max(values) - min(values)
        table[name] = {"mean": round(mean, 4), "spread": round(spread, 4), "values": values}
        print(f"| {name} | {mean:.4f} | {spread:.4f} | {len(values)} | {minutes:.1f} |")
    means = {name: figures["mean"] for name, figures in table.items()}
    verdict = {}
    if {"nanocode modern", "nanochat"} <= means.keys():
        verdict["modern_no_worse_than_nanochat"] = means["nanocode modern"] <= means["nanochat"]
    if {"nanocode modern", "nanocode nanocode"} <= means.keys():
        verdict["modern_better_than_nanocode"] = means["nanocode modern"] < means["nanocode nanocode"]
    return {"benchmark": "learning_curve", "bits_per_byte": table, **verdict}


def say(line: str) -> None:
    """Show a line of a job's log."""
    print(f"  {line}", flush=True)


if __name__ == "__main__":
    main()
