"""The stage `pretrain`: a GPT from scratch on packed corpus rows, measured in bits per byte of each source."""

from functools import partial
from typing import TYPE_CHECKING, Any

from flax import nnx

from nanocode_core.data.rows import TokenRows
from nanocode_core.model.engine import complete
from nanocode_core.model.flops import count_parameters
from nanocode_core.model.gpt import GPT
from nanocode_core.model.scoring import bits_per_byte, slices
from nanocode_core.model.shape import Shape
from nanocode_core.model.weights import save_model
from nanocode_core.tokenizer import Tokenizer
from nanocode_core.training.horizon import horizon
from nanocode_core.training.loop import Periodic, Plan, train
from nanocode_core.training.objectives import HostBatch, next_token, whole_rows
from nanocode_core.training.optimizer import build_optimizer
from nanocode_core.training.setup import prepare_jax, remembered, throughput, write_json

if TYPE_CHECKING:
    from nanocode_core.jobs.job import Job

PROMPTS = (
    "import os\n\n\ndef read_lines(path):\n",
    "class Stack:\n    def __init__(self):\n",
    "for i in range(10):\n",
    "The standard library has",
    "This function returns",
)
"""Starts that the trained model goes on with, for a look at what it has learned."""
SAMPLE_TOKENS = 48


def build(job: "Job") -> dict[str, Any]:
    """Train from scratch; write model.safetensors, model.json, samples.json, evaluation.json."""
    prepare_jax(job.config)
    config = job.config.training
    tokenizer = Tokenizer.load(job.inputs["tokenizer"].path)
    rows = TokenRows(job.inputs["tokens"].path)
    shape = Shape.of(job.config.model, tokenizer.vocabulary)
    model = nnx.jit(lambda: GPT(shape, job.config.seed))()
    counts = count_parameters(model.shape)
    run = horizon(job.config, shape)
    steps, tokens_per_step = run.steps, run.batch_sequences * rows.sequence
    job.log(
        f"{counts['total']:,} parameters, {steps} steps of {tokens_per_step:,} tokens "
        f"({steps * tokens_per_step / (rows.count * rows.sequence):.2f} epochs)"
    )

    validation = {s: whole_rows(rows.validation(s, config.validation_tokens)) for s in rows.sources}
    validate = partial(source_bits_per_byte, validation=validation, tokenizer=tokenizer)
    before = remembered(job, "before", lambda: validate(model))

    def batch(step: int) -> HostBatch:
        return whole_rows(rows.batch(step, run.batch_sequences, job.config.seed))

    plan = Plan(
        steps=steps,
        batch=batch,
        objective=next_token,
        tokens_per_step=tokens_per_step,
        micro=config.micro_sequences,
        periodic=(
            Periodic(config.validate_every, lambda model: {f"bpb_{s}": v for s, v in validate(model).items()}),
            Periodic(config.sample_every, lambda model: {"samples": sample(model, tokenizer)}),
        ),
    )
    optimizer = partial(
        build_optimizer,
        config.optimizer,
        steps,
        shape.width,
        rate_scale=run.rate_scale,
        decay_scale=run.decay_scale,
    )
    model = train(job, model, optimizer, plan)

    after = validate(model)
    job.metric(step=steps, **{f"bpb_{source}": value for source, value in after.items()})
    save_model(model, job.out)
    write_json(job.out / "samples.json", sample(model, tokenizer))
    evaluation = {
        "bits_per_byte": {"before": before, "after": after},
        "validation_tokens": {source: int(batch["inputs"].size) for source, batch in validation.items()},
        "parameters": counts,
        "steps": steps,
        "tokens": steps * tokens_per_step,
    }
    write_json(job.out / "evaluation.json", evaluation)
    return {
        **throughput(job),
        **{f"bpb_{source}": round(value, 4) for source, value in after.items()},
        "parameters": counts["total"],
        "steps": steps,
        "tokens": steps * tokens_per_step,
    }


def source_bits_per_byte(model: GPT, validation: dict[str, HostBatch], tokenizer: Tokenizer) -> dict[str, float]:
    """Bits per byte on each source's validation rows."""
    return {s: bits_per_byte(model, slices(batch), tokenizer.token_bytes) for s, batch in validation.items()}


def sample(model: GPT, tokenizer: Tokenizer) -> list[dict[str, str]]:
    """Greedy continuations of `PROMPTS`."""
    starts = [[tokenizer.bos, *tokenizer.encode(prompt)] for prompt in PROMPTS]
    ends = complete(model, starts, SAMPLE_TOKENS, stop={tokenizer.bos})
    return [{"prompt": p, "text": tokenizer.decode(ids)} for p, ids in zip(PROMPTS, ends, strict=True)]
