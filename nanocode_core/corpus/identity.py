"""What the corpus depends on besides its config: the packages and files that its sources read."""

import hashlib
import json
import platform
from collections.abc import Mapping
from typing import Any

from nanocode_core.config import Config
from nanocode_core.config.model import FilesSource, PythonSource
from nanocode_core.corpus import files, python
from nanocode_core.errors import UserError


def source_identity(config: Config) -> dict[str, Any]:
    """Flat further identity of the corpus stage; quick, and no network but for files behind a URL.

    Returns:
        "corpus.python": Python version and a hash over names and versions of the packages;
        "corpus.files.<source>": path, size and checksum of every file.

    Raises:
        UserError: the sources can't give what the code share asks for, or a file is missing.
    """
    check(config)
    found: dict[str, Any] = {}
    for source in config.corpus.sources:
        if isinstance(source, PythonSource):
            packages = hashlib.sha256(json.dumps(python.distributions()).encode()).hexdigest()[:16]
            found["corpus.python"] = {"version": platform.python_version(), "packages": packages}
        elif isinstance(source, FilesSource):
            found[f"corpus.files.{source.name}"] = files.identity(source)
    return found


def require_same(config: Config, planned: Mapping[str, Any]) -> None:
    """Raise UserError where the sources are not those that a run was planned with, of which its fingerprint tells.

    Args:
        planned: the identity of then, or a part of it.
    """
    for name, value in source_identity(config).items():
        if planned.get(name, value) == value:
            continue
        if name == "corpus.python":
            raise UserError(
                "the embedded corpus is the Python of the machine that builds it, and this one has another Python or "
                "other packages than the one that started the run; start the run in the cluster (`prefect deployment "
                "run`, docs/gke.md), or set corpus.sources"
            )
        raise UserError(f"{name.removeprefix('corpus.')} changed since the run was started; start it again")


def check(config: Config) -> None:
    """Raise UserError where the code share asks for content that no source has."""
    contents = {source.content for source in config.corpus.sources}
    share = config.corpus.code_share
    if share > 0 and "code" not in contents:
        raise UserError(f"corpus.code_share is {share:g} but no source has content 'code'; add one or set it to 0")
    if share < 1 and "prose" not in contents:
        raise UserError(f"corpus.code_share is {share:g} but no source has content 'prose'; add one or set it to 1")
