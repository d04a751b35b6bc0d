"""tokens: the corpus as packed token ids, rows of one training context each."""

from nanocode_core.jobs.stage import Stage

STAGE = Stage(
    name="tokens",
    version=1,
    build="nanocode_core.data.build:build",
    inputs=("corpus", "tokenizer"),
    identity=("model.sequence",),
)
