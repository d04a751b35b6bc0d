"""report: one page, HTML and Markdown, made from the records and metrics of all stages before it."""

from nanocode_core.jobs.stage import Stage

STAGE = Stage(
    name="report",
    version=1,
    build="nanocode_core.report.build:build",
    inputs=("corpus", "tokenizer", "tokens", "pretrain", "synthetic", "sft", "dpo", "eval"),
    identity=(),
)
