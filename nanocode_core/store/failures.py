"""What went wrong with a store, as one line that names the path and the remedy.

Storage clients fail in many types: OSError with an errno, gcsfs's HttpError, OSError("Forbidden: ..."),
google.api_core's Forbidden, google.auth's errors, aiohttp's. `storage_error` maps them all.
"""

import errno

from nanocode_core.errors import StorageError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)
CHOOSE = "choose another with --set run.store=..."
AGAIN = "run the same command again: it goes on from its last save"


def storage_error(error: Exception, root: str, path: str, doing: str) -> StorageError:
    """The StorageError for `error`, which came up while `doing` ("read", "write", "delete" ...) `path` of `root`."""
    number = error.errno if isinstance(error, OSError) else None
    place = _place(error, root, path)
    if number in _FULL:
        return StorageError(f"the disk is full (writing {place}): free some space and {AGAIN}")
    detail = _one_line(error)
    local = "://" not in root or (number is not None and getattr(error, "filename", None) is not None)
    if not local:
        if _status(error) in (401, 403):
            bucket, _, name = f"{root.partition('://')[2].strip('/')}/{path}".partition("/")
            return StorageError(
                f"store {root}: no permission to {doing} object {name} in bucket {bucket}; the principal lacks it: "
                f"grant it roles/storage.objectUser on the bucket, or {CHOOSE} ({detail})"
            )
        if type(error).__module__.startswith("google.auth"):
            return StorageError(
                f"store {root}: no usable Google credentials; run `gcloud auth application-default login`, "
                f"or {CHOOSE} ({detail})"
            )
        if isinstance(error, FileNotFoundError):
            return StorageError(f"store {root}: its bucket does not exist; create it, or {CHOOSE}")
        return StorageError(f"store {root}: could not {doing} {path} ({detail}); see to the network and {AGAIN}")
    if number in _REFUSED:
        can = "readable" if doing in ("read", "list") else "writable"
        if "://" in root:
            return StorageError(
                f"the cache is not {can}: {_reason(error)}: {place}; {CHOOSE.replace('store', 'cache')}"
            )
        return StorageError(f"store {root} is not {can}: {_reason(error)}: {place}; {CHOOSE}")
    return StorageError(f"store {root}: could not {doing} {place} ({_reason(error)}); see to the disk and {AGAIN}")


def _place(error: Exception, root: str, path: str) -> str:
    """The file the system complained about, else the one we asked for."""
    name = getattr(error, "filename", None)
    return str(name) if name else f"{root.rstrip('/')}/{path}"


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) else None
    return text.lower() if text else _one_line(error)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def _status(error: Exception) -> int | None:
    """The HTTP status an error stands for, where it can be told."""
    if isinstance(error, OSError) and str(error).startswith("Forbidden"):  # gcsfs's 403
        return 403
    code = getattr(error, "code", None)
    try:
        return int(code) if code is not None else None
    except (TypeError, ValueError):
        return None
