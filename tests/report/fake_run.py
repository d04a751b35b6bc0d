"""A whole run in a store, its figures invented, its records and files published by the real Store."""
# ruff: noqa: E501 -- data reads better in one line

import json
import math
import random
from pathlib import Path
from typing import Any

from nanocode_core.config import load_config
from nanocode_core.jobs.job import Job
from nanocode_core.store import Record, Store, fingerprint

INPUTS = {
    "corpus": (),
    "tokenizer": ("corpus",),
    "tokens": ("corpus", "tokenizer"),
    "pretrain": ("tokens", "tokenizer"),
    "synthetic": (),
    "sft": ("pretrain", "synthetic", "tokenizer"),
    "dpo": ("sft", "synthetic", "tokenizer"),
    "eval": ("pretrain", "sft", "dpo", "synthetic", "tokenizer", "tokens"),
}
MINUTES = {
    "corpus": 0.4,
    "tokenizer": 0.3,
    "tokens": 0.25,
    "pretrain": 4.1,
    "synthetic": 1.2,
    "sft": 5.2,
    "dpo": 0.8,
    "eval": 1.1,
}
METRICS: dict[str, dict[str, Any]] = {
    "corpus": {"documents": 8_412, "characters": 12_000_000, "code_share": 0.2},
    "tokenizer": {"vocabulary": 4096, "bytes_per_token python code": 3.61, "bytes_per_token english prose": 3.42},
    "tokens": {"rows": 6_504, "tokens": 3_336_552, "documents": 8_400, "cropped_share": 0.031},
    "pretrain": {
        "loss": 3.1,
        "tokens_per_second": 7_612.4,
        "bpb_python-prose": 1.912,
        "bpb_python-code": 1.433,
        "parameters": 3_342_336,
        "steps": 183,
        "tokens": 1_500_000,
    },
    "synthetic": {"teacher": "scripted", "rollouts": 2_000, "pairs": 731, "accepted_first_share": 0.634},
    "sft": {
        "loss": 0.11,
        "tokens_per_second": 7_204.0,
        "rollout_bpb_before": 1.61,
        "rollout_bpb": 0.094,
        "steps": 420,
        "tokens": 1_420_000,
    },
    "dpo": {
        "loss": 0.12,
        "tokens_per_second": 3_104.0,
        "pair_accuracy_before": 0.8125,
        "pair_accuracy": 0.9687,
        "rollout_bpb": 0.097,
        "pairs": 731,
    },
    "eval": {"success_dpo": 0.742, "valid_rate_dpo": 0.991},
}
FAMILIES = (
    "append_function",
    "find_definition",
    "fix_operator",
    "missing_file",
    "rename_function",
    "run_file",
    "set_constant",
    "write_file",
)


def build_run(
    root: Path, wild: str = "", only: tuple[str, ...] | None = None, machine: dict[str, Any] | None = None
) -> Job:
    """A job of the stage `report` over a published run; `wild` text is put wherever a model or a user writes."""
    store = Store(str(root / "store"))
    records: dict[str, Record] = {}
    for place, (stage, inputs) in enumerate(INPUTS.items()):
        config = {"seed": 0, "model.sequence": 512, f"{stage}.note": f"as it is{wild}"}
        if stage == "synthetic":
            config["soul.sha256"] = "5c" * 32
        key = fingerprint(stage, 1, config, {name: records[name].fingerprint for name in inputs})
        out = store.work_dir(stage, key) / "out"
        for name, content in documents(stage, wild).items():
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
        out.mkdir(parents=True, exist_ok=True)
        provenance = {
            "nanocode": "0.1.0",
            "commit": "0123456789ab",
            "python": "3.11.9",
            "packages": {"jax": "0.10.2", "numpy": "2.3.1", "prefect": None},
            "machine": machine
            or {"system": "Linux", "processor": "Some Processor 9000", "cores": 2, "memory_gib": 7.8},
            "started": 1_795_417_200.0 + 600 * place,
            "finished": 1_795_417_500.0 + 600 * place,
            "minutes": MINUTES[stage],
            "starts": 3 if stage == "sft" else 1,
        }
        chosen = {name: records[name] for name in inputs}
        records[stage] = store.publish(stage, 1, key, config, chosen, out, METRICS[stage], provenance)
    artifacts = {
        name: store.open(name, record.fingerprint) for name, record in records.items() if not only or name in only
    }
    work = root / "work"
    work.mkdir(exist_ok=True)
    return Job("report", "0" * 16, load_config("demo"), artifacts, work, work / "out", store)


def documents(stage: str, wild: str) -> dict[str, str]:
    """The files of a stage that the report reads."""
    match stage:
        case "tokenizer":
            names = ("python code", "english prose", "maths", "python-prose validation", "python-code validation")
            rows = [("this tokenizer", 4096, 3.4), ("trained without code", 4096, 2.5), ("gpt2" + wild, 50257, 3.1)]
            tokenizers = [
                {"name": n, "vocabulary": v, "bytes_per_token": {t: r + i / 7 for i, t in enumerate(names)}}
                for n, v, r in rows
            ]
            return {"comparison.json": json.dumps({"bytes": {}, "tokenizers": tokenizers})}
        case "pretrain":
            samples = [{"prompt": "def add(", "text": "def add(self, value):\n        return self" + wild}]
            return {"samples.json": json.dumps(samples), "logs/metrics.jsonl": curve(183, 8.3, 3.1, 7_600, bpb=True)}
        case "sft":
            document = json.dumps({"rollout_bits_per_byte": {"before": 1.61, "after": 0.094}, "steps": 420})
            return {"evaluation.json": document, "logs/metrics.jsonl": curve(420, 2.4, 0.11, 7_200)}
        case "dpo":
            measured = {"pair_accuracy": 0.8125, "pair_margin": 3.1, "rollout_bpb": 0.094}
            changed = {"pair_accuracy": 0.9687, "pair_margin": 11.8, "rollout_bpb": 0.097}
            document = json.dumps({"before": measured, "after": changed, "pairs": 731})
            return {"evaluation.json": document, "logs/metrics.jsonl": curve(46, 1.0, 0.12, 3_100, accuracy=True)}
        case "synthetic":
            reasons = {"not lowercase" + wild: 311, "edits a file without reading it": 190, "praises the question": 102}
            counts = {"tasks": 250, "rollouts": 235, "pairs": 91, "held_out": 15, "attempts": 1.372, "calls": 1.9}
            counts |= {"refused": 0, "rejected_for": reasons, "dropped_tasks": {}}
            families = {f: {**counts, "accepted_first": 0.64 - i / 30} for i, f in enumerate(FAMILIES)}
            total = {**counts, "tasks": 2_000, "accepted_first": 0.523}
            return {"statistics.json": json.dumps({"families": families, "total": total})}
        case "eval":
            return {"evaluation.json": json.dumps(evaluation()), "transcripts.jsonl": transcripts(wild)}
    return {"data.txt": stage}


def curve(steps: int, first: float, last: float, speed: float, bpb: bool = False, accuracy: bool = False) -> str:
    """Metrics lines with a noisy, falling loss."""
    noise = random.Random(0)
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        loss = last + (first - last) * math.exp(-step / (steps / 6)) + noise.gauss(0, 0.05 * last)
        line = {"time": 1e9 + step, "step": step, "loss": loss, "tokens_per_second": speed + noise.gauss(0, 90)}
        if accuracy:
            line["margin_positive"] = 1 - 0.5 * math.exp(-step / 9)
        lines.append(line)
        if bpb and step % 25 == 0:
            lines.append(
                {
                    "time": 1e9,
                    "step": step,
                    "bpb_python-prose": 0.8 * loss / 2 + 0.7,
                    "bpb_python-code": 0.4 * loss + 0.2,
                }
            )
    return "".join(json.dumps(line) + "\n" for line in lines)


def evaluation() -> dict[str, Any]:
    """evaluation.json of the stage eval."""

    def rate(share: float, of: int = 120) -> dict[str, Any]:
        return {"rate": round(share, 6), "count": round(share * of), "of": of}

    def agent(success: float, valid: float, of: int) -> dict[str, Any]:
        return {
            "tasks": of,
            "task_success": rate(success, of),
            "valid_call_rate": rate(valid, 2 * of),
            "right_tool_rate": rate(valid * 0.97, 2 * of),
            "recovered_rate": {"rate": None, "count": 0, "of": 0},
            "turns": 2.91,
            "malformed_turns": 3,
        }

    def model(bits: float, accuracy: float, success: float | None = None, valid: float = 0) -> dict[str, Any]:
        sources = {
            "python-prose": {"bpb": bits, "bytes": 190_112},
            "python-code": {"bpb": bits - 0.4, "bytes": 201_940},
        }
        text = {"bpb": sources, "rollouts": {"bpb": 0.094, "rollouts": 120}, "pairs": rate(accuracy, 96)}
        if success is None:
            return text
        soul = {"agent_turns": 349, "lowercase_rate": rate(valid, 349), "flaws": {"says anything else": 2}}
        families = {f: agent(success * (0.6 + i / 14), valid, 15) for i, f in enumerate(FAMILIES)}
        return {**text, "tasks": agent(success, valid, 120), "families": families, "soul": soul}

    return {"base": model(1.912, 0.5), "sft": model(2.1, 0.81, 0.73, 0.98), "dpo": model(2.12, 0.97, 0.742, 0.991)}


def transcripts(wild: str) -> str:
    """transcripts.jsonl of the stage eval: every family solved by two models, and failures."""

    def turn(role: str, text: str, name: str = "", **arguments: str) -> dict[str, Any]:
        return {"role": role, "text": text + wild, "call": {"name": name, "arguments": arguments} if name else None}

    edit = {
        "file_path": "shop/cart.py",
        "old_string": "def total(items):\n    return sum(items) - 1",
        "new_string": "def total(items):\n    return sum(items) + 1",
    }
    solved = [
        turn("user", "the function `total` in shop/cart.py subtracts one. it should add one, can you fix that?"),
        turn("assistant", "let me look at the file first.", "Read", file_path="shop/cart.py"),
        turn(
            "tool",
            "    1→import math\n    2→\n    3→def total(items):\n    4→    return sum(items) - 1\n    5→\n    6→print(total([1, 2]))",
        ),
        turn("assistant", "there it is, a minus where a plus should be.", "Edit", **edit),
        turn("tool", "    3→def total(items):\n    4→    return sum(items) + 1"),
        turn("assistant", "let me see that it runs.", "Bash", command="python shop/cart.py" + wild),
        turn("tool", "4\n"),
        turn("assistant", "done: `total` adds one now, and the file prints 4."),
    ]
    failed = [
        turn("user", "what is MAX_ROWS set to?"),
        turn("assistant", "looking for it.", "Grep", pattern="MAX_ROWS", path="."),
        turn("tool", "error: no such directory: rows"),
        turn("assistant", "it is set to 12 in config/limits.py, line 3."),
    ]
    lines = []
    for model in ("sft", "dpo"):
        for place, family in enumerate(FAMILIES):
            good = place % 3 != 2
            talk = {"system": "", "turns": solved if good else failed}
            lines.append(
                {
                    "model": model,
                    "family": family,
                    "solved": good,
                    "reason": "" if good else "the answer names another file",
                    "conversation": talk,
                }
            )
    return "".join(json.dumps(line) + "\n" for line in lines)
