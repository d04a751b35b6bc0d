"""What went wrong with a store, as one line that names the path and the remedy.

Storage clients fail in many types: OSError with an errno, gcsfs's HttpError, OSError("Forbidden: ..."),
google.api_core's Forbidden, google.auth's errors, aiohttp's, tensorstore's ValueError("PERMISSION_DENIED:
..."). `storage_error` maps them all.
"""

import errno
import re
from urllib.parse import unquote

from nanocode_core.errors import StorageError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)
CHOOSE = "choose another with --set run.store=..."
AGAIN = "run the same command again: it goes on from its last save"

_LACKS = re.compile(r"(Anonymous caller|[^\s\"']+) does not have (storage\.[\w.]+) access")
"""How Google words it; to a federated identity it says "Caller"."""
_PLACES = (re.compile(r"/b/([^/\s?]+)/o/([^\s?\"']+)"), re.compile(r"/b/([^/\s?]+)/o\?(?:\S*&)?name=([^\s&\"']+)"))
"""Where URLs of the protocol name bucket and object."""
_URL = re.compile(r"gs://([^/\s\"']+)/([^\s\"':,]+)")
_DENIED = ("Forbidden", "PERMISSION_DENIED", "UNAUTHENTICATED")
"""How the messages of gcsfs's and tensorstore's errors begin that have no status."""


def storage_error(error: Exception, root: str, path: str, doing: str, principal: str = "this process") -> StorageError:
    """The StorageError for `error`, which came up while `doing` ("read", "write", "delete" ...) `path` of `root`.

    Args:
        principal: who we are, where the error does not tell.
    """
    number = error.errno if isinstance(error, OSError) else None
    place = _place(error, root, path)
    if number in _FULL:
        return StorageError(f"the disk is full (writing {place}): free some space and {AGAIN}", lasting=True)
    detail = _one_line(error)
    local = "://" not in root or (number is not None and getattr(error, "filename", None) is not None)
    if not local:
        if _status(error) in (401, 403):
            return _denied(error, root, path, doing, principal)
        if type(error).__module__.startswith("google.auth"):
            return StorageError(
                f"store {root}: no usable Google credentials; run `gcloud auth application-default login`, "
                f"or {CHOOSE} ({detail})",
                lasting=True,
            )
        return StorageError(f"store {root}: could not {doing} {path} ({detail}); see to the network and {AGAIN}")
    if number in _REFUSED:
        can = "readable" if doing in ("read", "list") else "writable"
        if "://" in root:
            return StorageError(
                f"the cache is not {can}: {_reason(error)}: {place}; {CHOOSE.replace('store', 'cache')}"
            )
        return StorageError(f"store {root} is not {can}: {_reason(error)}: {place}; {CHOOSE}")
    return StorageError(f"store {root}: could not {doing} {place} ({_reason(error)}); see to the disk and {AGAIN}")


def _denied(error: Exception, root: str, path: str, doing: str, principal: str) -> StorageError:
    """Who may not do what, by the error itself where it tells: it may be about a file below `path`."""
    text = str(error)
    bucket, _, name = f"{root.partition('://')[2].strip('/')}/{path}".partition("/")
    for pattern in (*_PLACES, _URL):
        for there, told in pattern.findall(text):
            if there == bucket and len(unquote(told)) > len(name) and unquote(told).startswith(name):
                name = unquote(told)
    lacks, what = _LACKS.search(text), ""
    if lacks:
        what = f" ({lacks[2]})"
        if lacks[1] != "Caller":
            principal = lacks[1].replace("Anonymous", "an anonymous")
    object_ = f"objects below {name or '/'}" if doing == "list" else f"object {name}"
    return StorageError(
        f"store {root}: {principal} has no permission to {doing} {object_} in bucket {bucket}{what}: grant it "
        f"roles/storage.objectUser on the bucket, or {CHOOSE}",
        lasting=True,
    )


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
    if isinstance(error, OSError | ValueError) and str(error).startswith(_DENIED):
        return 403
    code = getattr(error, "code", None)
    try:
        return int(code) if code is not None else None
    except (TypeError, ValueError):
        return None
