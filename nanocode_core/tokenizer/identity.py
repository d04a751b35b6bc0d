"""What of the user's tokenizer files enters the fingerprint: their content, not their place."""

import hashlib
from pathlib import Path
from typing import Any

from nanocode_core.config import Config
from nanocode_core.errors import UserError


def tokenizer_identity(config: Config) -> dict[str, Any]:
    """Hashes of the files at tokenizer.path and tokenizer.compare, the latter with their labels.

    Raises:
        UserError: a file is missing or can't be read.
    """
    settings = config.tokenizer
    return {
        "tokenizer.path.sha256": None if settings.path is None else _digest("tokenizer.path", settings.path),
        "tokenizer.compare.sha256": [
            [label(path), _digest(f"tokenizer.compare[{place}]", path)] for place, path in enumerate(settings.compare)
        ],
    }


def label(path: str) -> str:
    """The name of a tokenizer file in tables: its own, or its folder's where it is `tokenizer.json`."""
    file = Path(path)
    return file.parent.name if file.stem == "tokenizer" and file.parent.name else file.stem


def _digest(field: str, path: str) -> str:
    try:
        return hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{field}: {path}: {error.strerror}; give the path of a tokenizer.json") from None
