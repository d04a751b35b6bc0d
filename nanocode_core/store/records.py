"""Records: what an artifact is made from and of; fingerprints and digests, which name it.

The fingerprint hashes what a result *is* before it exists: stage, stage version, identity, the
fingerprints of its inputs. The digest hashes what came out: every file outside `logs/`, where the
clock times are. Two builds of one fingerprint should have one digest; that is what reproducible means.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from nanocode_core.errors import CorruptArtifact, UserError
from nanocode_core.store.files import is_relative

FORMAT = 1
"""The record format that this version writes, and the newest that it reads."""
RECORD = "artifact.json"
LOGS = "logs/"
"""Files below this folder are part of the artifact but not of its digest."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_EXACT = 2**53


class FileEntry(BaseModel):
    """A file's size in bytes and its sha256 (64 hex digits)."""

    model_config = ConfigDict(frozen=True)

    size: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class InputRef(BaseModel):
    """An artifact that went into another one."""

    model_config = ConfigDict(frozen=True)

    stage: str
    fingerprint: str
    digest: str


class Record(BaseModel):
    """`artifact.json`, written last: where there is one, the artifact is complete.

    Attributes:
        version: the stage's version.
        config: the identity, flat: dotted names to JSON values.
        inputs: by the name under which the stage takes them.
        folder: where the files lie below the artifact's directory; "" for that directory itself. On
            a remote store each publishing writes to a folder of its own, and the record picks one.
        files: by path relative to `folder`.
        metrics: headline metrics, flat; NaN and infinity are written as null.
        provenance: code, versions, machine, `started` and `finished` (Unix seconds), `minutes`.
    """

    model_config = ConfigDict(frozen=True)

    format: int = FORMAT
    stage: str
    version: int
    fingerprint: str
    digest: str
    config: dict[str, Any]
    inputs: dict[str, InputRef]
    folder: str = ""
    files: dict[str, FileEntry]
    metrics: dict[str, Any]
    provenance: dict[str, Any]

    @property
    def key(self) -> tuple[str, str]:
        """Stage and fingerprint."""
        return self.stage, self.fingerprint

    @property
    def finished(self) -> float:
        """When it was built, in Unix seconds; 0.0 where that is not recorded."""
        value = self.provenance.get("finished")
        return float(value) if isinstance(value, int | float) else 0.0

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files.values())

    @field_validator("files")
    @classmethod
    def _inside(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for path in files:
            if not is_relative(path):
                raise ValueError(f"{path!r} leads out of the artifact")
        return files

    @field_validator("folder")
    @classmethod
    def _folder_inside(cls, folder: str) -> str:
        if folder and not is_relative(folder):
            raise ValueError(f"{folder!r} leads out of the artifact")
        return folder

    @model_validator(mode="after")
    def _consistent(self) -> "Record":
        if self.digest != digest(self.files):
            raise ValueError("digest and files disagree")
        return self

    def to_json(self) -> bytes:
        """The content of artifact.json."""
        return (self.model_dump_json(indent=1) + "\n").encode()


def parse_record(data: bytes, stage: str, key: str) -> Record:
    """The record of artifact stage/key from the content of its artifact.json.

    Raises:
        UserError: it was written by a newer version.
        CorruptArtifact: it is no record, or not that of this artifact.
    """
    name = f"{stage}/{key}"
    remove = f"`nanocode artifacts rm {name}`"
    try:
        value = json.loads(data)
        written = value["format"]
        if type(written) is not int or written < 1:
            raise ValueError("format is not a positive integer")
        if written > FORMAT:
            raise UserError(
                f"artifact {name} was written by a newer nanocode (format {written}, this one reads {FORMAT}); "
                f"upgrade, or remove it with {remove}"
            )
        record = Record.model_validate(value)
        if record.key != (stage, key):
            raise ValueError(f"it describes {record.stage}/{record.fingerprint}")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CorruptArtifact(
            f"artifact {name}: {RECORD} is not a valid record ({_reason(error)}); "
            f"run {remove} and run again: only this stage is rebuilt"
        ) from None
    return record


def fingerprint(stage: str, version: int, identity: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """16 hex digits that name the result of a stage with this identity and these input fingerprints.

    The order of keys does not count, a tuple equals a list, 1.0 equals 1 (as in JSON); True does not
    equal 1. Raises TypeError or ValueError for what JSON can't say (other types, NaN, infinity).
    """
    value = {"stage": stage, "version": version, "identity": identity, "inputs": inputs}
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]


def digest(files: Mapping[str, FileEntry]) -> str:
    """64 hex digits over names and sha256 of all files outside `logs/`."""
    pairs = sorted((path, entry.sha256) for path, entry in files.items() if not path.startswith(LOGS))
    return hashlib.sha256(canonical(pairs).encode()).hexdigest()


def canonical(value: Any) -> str:
    """One JSON text for equal values: sorted keys, no spaces, ASCII, integral floats as integers."""
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def is_name(text: str) -> bool:
    """Whether `text` can be a stage or a fingerprint, and so a folder's name."""
    return _NAME.fullmatch(text) is not None


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} has no JSON form")
        return int(value) if value.is_integer() and abs(value) < _EXACT else value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"key {key!r} is not a string")
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return f"{place}: {first['msg']}" if place else first["msg"]
    if isinstance(error, KeyError):
        return f"no field {error}"
    return str(error)
