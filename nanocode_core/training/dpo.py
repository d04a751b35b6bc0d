"""The stage `dpo`: the fine-tuned model learns to prefer the accepted rollouts to the drafts they replaced.

The reference model is the starting point itself. Its log-probabilities do not change, so they are
computed once, before the first step, and kept in the work directory.
"""

import os
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nanocode_core.data.permutation import batch_rows
from nanocode_core.data.preferences import PairBatch, PreferencePairs, encode_pairs, read_pairs
from nanocode_core.model.gpt import GPT
from nanocode_core.model.scoring import sequence_logprobs
from nanocode_core.model.weights import load_model, save_model
from nanocode_core.tokenizer import Tokenizer
from nanocode_core.training.loop import Plan, train
from nanocode_core.training.objectives import HostBatch, paired_rows, preference
from nanocode_core.training.optimizer import build_optimizer
from nanocode_core.training.setup import prepare_jax, remembered, throughput, write_json
from nanocode_core.training.sft import read_packed, rollout_bits_per_byte

if TYPE_CHECKING:
    from nanocode_core.jobs.job import Job


def build(job: "Job") -> dict[str, Any]:
    """Train on the pairs; write model.safetensors, model.json, evaluation.json."""
    prepare_jax(job.config)
    config = job.config.dpo
    tokenizer = Tokenizer.load(job.inputs["tokenizer"].path)
    model = load_model(job.inputs["sft"].path)
    sequence = model.shape.sequence
    data = _pairs(job, "pairs.parquet", tokenizer, sequence)
    held_out = _pairs(job, "held_out_pairs.parquet", tokenizer, sequence)
    rollouts = read_packed(job, "held_out_rollouts.parquet", tokenizer, sequence)
    steps = data.steps(config.epochs, config.batch_pairs)
    job.log(f"{data.count} pairs ({data.dropped} dropped), {steps} steps of {config.batch_pairs} pairs")

    def measure(model: GPT) -> dict[str, float]:
        logprobs = pair_logprobs(model, held_out)
        return {
            "pair_accuracy": float(np.mean(logprobs[:, 0] > logprobs[:, 1])),
            "pair_margin": float(np.mean(logprobs[:, 0] - logprobs[:, 1])),
            "rollout_bpb": rollout_bits_per_byte(model, rollouts, tokenizer),
        }

    before = remembered(job, "before", lambda: measure(model))
    rows = _rows(data.pairs)

    def members(step: int) -> NDArray[np.int64]:
        return batch_rows(step, config.batch_pairs, data.count, job.config.seed)

    rows["reference"] = _reference(job, model, rows, np.unique([members(step) for step in range(steps)]))
    share = np.full(config.batch_pairs, 1 / config.batch_pairs, np.float32)

    def batch(step: int) -> HostBatch:
        return {name: array[members(step)] for name, array in rows.items()} | {"share": share}

    tokens_per_step = 2 * config.batch_pairs * (data.pairs.chosen.shape[1] - 1)
    plan = Plan(steps, batch, preference(config.loss, config.beta), tokens_per_step)
    model = train(job, model, partial(build_optimizer, config.optimizer, steps, model.shape.width), plan)

    after = measure(model)
    job.metric(step=steps, **after)
    save_model(model, job.out)
    evaluation = {
        "before": before,
        "after": after,
        "pairs": data.count,
        "pairs_dropped": {
            "too_long": data.too_long,
            "without_assistant": data.without_assistant,
            "identical": data.identical,
        },
        "held_out_pairs": held_out.count,
        "steps": steps,
    }
    write_json(job.out / "evaluation.json", evaluation)
    return {
        **{name: round(value, 4) for name, value in after.items()},
        **{f"{name}_before": round(value, 4) for name, value in before.items()},
        **throughput(job),
        "pairs": data.count,
        "steps": steps,
    }


def pair_logprobs(model: GPT, data: PreferencePairs) -> NDArray[np.float32]:
    """Summed log-probabilities of the assistant tokens of every pair's sides: [N, 2] nats, chosen first."""
    return _logprobs(model, _rows(data.pairs))


def _logprobs(model: GPT, rows: HostBatch) -> NDArray[np.float32]:
    flat = {name: rows[name].reshape(-1, rows[name].shape[-1]) for name in ("inputs", "targets", "weights")}
    return sequence_logprobs(model, flat).reshape(-1, 2).astype(np.float32)


def _pairs(job: "Job", name: str, tokenizer: Tokenizer, sequence: int) -> PreferencePairs:
    return encode_pairs(read_pairs(job.inputs["synthetic"].path / name), tokenizer, sequence)


def _rows(pairs: PairBatch) -> HostBatch:
    return paired_rows(pairs.chosen, pairs.chosen_mask, pairs.rejected, pairs.rejected_mask)


def _reference(job: "Job", model: GPT, rows: HostBatch, used: NDArray[np.int64]) -> NDArray[np.float32]:
    """The starting model's log-probabilities [N, 2] of the training pairs, from the work directory if there.

    Only those of the `used` pairs are computed (part of an epoch leaves some out); the others are 0.
    """
    path = job.work / "reference.npy"
    if not path.exists():
        job.log(f"log-probabilities of {len(used)} pairs under the reference model")
        reference = np.zeros((len(rows["inputs"]), 2), np.float32)
        reference[used] = _logprobs(model, {name: array[used] for name, array in rows.items()})
        partial = job.work / "reference.tmp.npy"
        np.save(partial, reference)
        os.replace(partial, path)
    array: NDArray[np.float32] = np.load(path)
    return array
