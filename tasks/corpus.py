"""corpus: text and code from the configured sources, as parquet shards with a validation shard a source."""

from collections.abc import Mapping
from typing import Any

from nanocode_core.config import Config
from nanocode_core.jobs.stage import Stage


def _extra(config: Config) -> Mapping[str, Any]:
    """What the sources hold right now: versions of what is installed, revisions, hashes of files."""
    from nanocode_core.corpus.identity import source_identity

    return source_identity(config)


STAGE = Stage(
    name="corpus",
    version=1,
    build="nanocode_core.corpus.build:build",
    inputs=(),
    identity=("corpus", "seed"),
    extra=_extra,
)
