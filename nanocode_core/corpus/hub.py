"""Datasets of the Hugging Face hub: which files of a repository, and each of them verified.

HF_ENDPOINT, HF_TOKEN (or a stored login) and HF_HUB_OFFLINE are honoured. Files are downloaded to
a cache under the commit they belong to. The first start of a build notes commit and files in its
work directory, so that a restart takes the same ones even if the branch has moved on.
"""

import json
import os
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import huggingface_hub

from nanocode_core.config.model import HubSource
from nanocode_core.corpus import tables
from nanocode_core.corpus.download import Checksum, RefusedError, Retry, UnreachableError, client, download, get_json
from nanocode_core.corpus.units import Split
from nanocode_core.errors import UserError

RETRY = Retry()


@dataclass(frozen=True)
class HubUnit:
    """A parquet file of a dataset, in the cache once it is fetched."""

    name: str
    column: str
    split: Split
    source: HubSource
    commit: str
    file: str
    checksum: Checksum
    cached: Path
    endpoint: str

    def path(self, folder: Path) -> Path:
        """The file in the download cache."""
        return self.cached

    def fetch(self) -> None:
        """Download the file, or verify the one in the cache.

        Raises:
            UserError: it can't be had, in one line.
        """
        if _offline() and self.checksum.matches(self.cached):
            return
        url = f"{self.endpoint}/datasets/{self.source.repo}/resolve/{self.commit}/{quote(self.file)}"
        try:
            _refuse_offline()
            with client() as http:
                if download(http, url, _headers(), self.cached, self.checksum, RETRY):
                    size = f"{self.checksum.size / 1e6:,.1f} MB"
                    print(f"corpus: {self.source.name}: {self.file} downloaded and verified ({size})", flush=True)
        except (RefusedError, UnreachableError) as error:
            raise _problem(self.source, self.endpoint, error, self.file) from error

    def make(self, folder: Path) -> None:
        """Nothing to make."""


def units(source: HubSource, cache: Path, work: Path) -> list[HubUnit]:
    """One unit a file, in sorted order; the last is for validation, unless it is the only one.

    Args:
        cache: folder for downloads, shared between builds.
        work: the source's own folder in the work directory.

    Raises:
        UserError: no network, no such repository or revision, or too few files match the pattern.
    """
    endpoint = _endpoint()
    noted = work / "hub.json"
    if not noted.exists():
        try:
            _refuse_offline()
            with client() as http:
                listing = _listing(http, endpoint, source)
        except (RefusedError, UnreachableError) as error:
            raise _problem(source, endpoint, error) from error
        work.mkdir(parents=True, exist_ok=True)
        partial = work / "hub.json.partial"
        partial.write_text(json.dumps(listing, indent=1))
        tables.put(partial, noted)
    listing = json.loads(noted.read_text())
    files = [f for f in listing["files"] if fnmatchcase(f["path"], source.pattern)]
    if len(files) < source.shards:
        some = ", ".join(f["path"] for f in listing["files"][:3]) or "none"
        raise UserError(
            f"corpus source {source.name!r}: {len(files)} files of {source.repo} match {source.pattern!r}, "
            f"{source.shards} are wanted; change pattern or shards (files there: {some} ...)"
        )
    files = files[: source.shards]
    folder = cache / "hub" / source.repo.replace("/", "--") / listing["commit"]
    found = []
    for number, file in enumerate(files):
        split = Split.HASHED_ONE if len(files) == 1 else Split.ALL if number == len(files) - 1 else Split.NONE
        checksum = Checksum(file["size"], file["sha256"], file["blob"])
        found.append(
            HubUnit(
                f"file-{number:05d}", source.column, split, source, listing["commit"], file["path"], checksum,
                folder / file["path"], endpoint,
            )
        )  # fmt: skip
    return found


def _listing(http: httpx.Client, endpoint: str, source: HubSource) -> dict[str, Any]:
    """The commit that the revision stands for, and its files in sorted order."""
    api = f"{endpoint}/api/datasets/{source.repo}"
    about, _ = get_json(http, f"{api}/revision/{quote(source.revision, safe='')}", _headers(), RETRY)
    commit = str(_field(about, "sha", endpoint))
    files: list[dict[str, Any]] = []
    url: str | None = f"{api}/tree/{commit}?recursive=true&expand=false"
    while url:
        page, response = get_json(http, url, _headers(), RETRY)
        for entry in page if isinstance(page, list) else []:
            if ".." in entry["path"].split("/") or entry["path"].startswith("/"):
                raise UnreachableError(f"{_shown(endpoint)} lists a file outside of its repository")
            if entry.get("type") == "file":
                sha256 = (entry.get("lfs") or {}).get("oid")
                files.append({"path": entry["path"], "size": entry["size"], "sha256": sha256, "blob": entry["oid"]})
        # A mirror may pass on links to the original hub: only path and query count.
        link = response.links.get("next", {}).get("url")
        url = (
            f"{endpoint}/api/{urlsplit(link)._replace(scheme='', netloc='').geturl().partition('/api/')[2]}"
            if link
            else None
        )
    return {"commit": commit, "files": sorted(files, key=lambda file: str(file["path"]))}


def _field(value: object, name: str, endpoint: str) -> object:
    if not isinstance(value, dict) or name not in value:
        raise UnreachableError(f"{_shown(endpoint)} does not answer as a Hugging Face hub does")
    return value[name]


def _endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _refuse_offline() -> None:
    if _offline():
        raise UnreachableError("HF_HUB_OFFLINE is set")


def _headers() -> dict[str, str]:
    """Built anew for each request, so that the token is in no unit, file or log."""
    token = huggingface_hub.get_token()
    return {"User-Agent": "nanocode", **({"Authorization": f"Bearer {token}"} if token else {})}


def _problem(source: HubSource, endpoint: str, error: RefusedError | UnreachableError, file: str = "") -> UserError:
    what = f"corpus source {source.name!r}"
    place = f"{source.repo}@{source.revision}{'/' + file if file else ''}"
    if isinstance(error, RefusedError) and error.status in (401, 403):
        return UserError(
            f"{what}: {_shown(endpoint)} refuses access to {place} ({error}); check the name, or set HF_TOKEN if the "
            "dataset is private or gated"
        )
    if isinstance(error, RefusedError):
        return UserError(f"{what}: {_shown(endpoint)} has no dataset {place} ({error}); check repo and revision")
    return UserError(
        f"{what}: cannot reach the hub at {_shown(endpoint)}: {error}; check the network or HF_ENDPOINT, or use a "
        "`files` source"
    )


def _shown(endpoint: str) -> str:
    """The address without a password that it may hold."""
    parts = urlsplit(endpoint)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
