"""The stage `sft`: the pretrained model learns the rollouts, by the loss on assistant tokens alone."""

from functools import partial
from typing import TYPE_CHECKING, Any

from nanocode_core.data.conversations import (
    ConversationBatch,
    PackedConversations,
    pack_conversations,
    read_conversations,
)
from nanocode_core.model.gpt import GPT
from nanocode_core.model.scoring import bits_per_byte, slices
from nanocode_core.model.weights import load_model, save_model
from nanocode_core.tokenizer import Tokenizer
from nanocode_core.training.loop import Periodic, Plan, train
from nanocode_core.training.objectives import HostBatch, next_token, packed_rows
from nanocode_core.training.optimizer import build_optimizer
from nanocode_core.training.setup import prepare_jax, remembered, throughput, write_json

if TYPE_CHECKING:
    from nanocode_core.jobs.job import Job


def build(job: "Job") -> dict[str, Any]:
    """Fine-tune; write model.safetensors, model.json, evaluation.json."""
    prepare_jax(job.config)
    config = job.config.sft
    tokenizer = Tokenizer.load(job.inputs["tokenizer"].path)
    model = load_model(job.inputs["pretrain"].path)
    sequence = model.shape.sequence
    data = read_packed(job, "rollouts.parquet", tokenizer, sequence)
    held_out = read_packed(job, "held_out_rollouts.parquet", tokenizer, sequence)
    steps = data.steps(config.epochs, config.batch_sequences)
    job.log(
        f"{data.conversations} rollouts in {data.count} rows of {sequence} ({data.dropped} too long), "
        f"{steps} steps of {config.batch_sequences} rows"
    )

    def validate(model: GPT) -> float:
        return rollout_bits_per_byte(model, held_out, tokenizer)

    before = remembered(job, "before", lambda: validate(model))

    def batch(step: int) -> HostBatch:
        return prediction_rows(data.batch(step, config.batch_sequences, job.config.seed))

    plan = Plan(
        steps=steps,
        batch=batch,
        objective=next_token,
        tokens_per_step=config.batch_sequences * sequence,
        micro=config.micro_sequences,
        periodic=(Periodic(config.validate_every, lambda model: {"rollout_bpb": validate(model)}),),
    )
    model = train(job, model, partial(build_optimizer, config.optimizer, steps, model.shape.width), plan)

    after = validate(model)
    job.metric(step=steps, rollout_bpb=after)
    save_model(model, job.out)
    evaluation = {
        "rollout_bits_per_byte": {"before": before, "after": after},
        "rollouts": data.conversations,
        "rollouts_too_long": data.dropped,
        "held_out_rollouts": held_out.conversations,
        "steps": steps,
        "tokens": steps * config.batch_sequences * sequence,
    }
    write_json(job.out / "evaluation.json", evaluation)
    return {
        "rollout_bpb": round(after, 4),
        "rollout_bpb_before": round(before, 4),
        **throughput(job),
        "steps": steps,
        "tokens": steps * config.batch_sequences * sequence,
    }


def read_packed(job: "Job", name: str, tokenizer: Tokenizer, sequence: int) -> PackedConversations:
    """The packed rollouts of a file of the synthetic artifact."""
    return pack_conversations(read_conversations(job.inputs["synthetic"].path / name), tokenizer, sequence)


def prediction_rows(batch: ConversationBatch) -> HostBatch:
    """Packed conversations as a prediction batch."""
    return packed_rows(batch.tokens, batch.mask, batch.segments, batch.positions)


def rollout_bits_per_byte(model: GPT, held_out: PackedConversations, tokenizer: Tokenizer) -> float:
    """Bits per byte of the assistant's text and calls in held-out rollouts."""
    return bits_per_byte(model, slices(prediction_rows(held_out.rows)), tokenizer.token_bytes)
