"""A client of the Kubernetes API in plain dictionaries: what a node agent needs, and server-side apply.

Tests of nanocode use the official client, as nanocode does; this one has no types to get in the way of
status patches, watches and documents of any kind.
"""

import json
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import yaml

Object = dict[str, Any]

PATCHES = {
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "apply": "application/apply-patch+yaml",
}


class Refused(Exception):
    """The API server's answer to a request that it did not fulfil."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason


class Api:
    """The API server that a kubeconfig with client certificates names. Threads may share one."""

    def __init__(self, kubeconfig: Path | str) -> None:
        config = yaml.safe_load(Path(kubeconfig).read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        context = ssl.create_default_context(cafile=cluster["certificate-authority"])
        context.load_cert_chain(user["client-certificate"], user["client-key"])
        # A watch is silent as long as nothing happens, hence no limit on reading.
        timeout = httpx.Timeout(60, read=None)
        limits = httpx.Limits(max_connections=None)
        self.client = httpx.Client(base_url=cluster["server"], verify=context, timeout=timeout, limits=limits)
        self.resource = cache(self._resource)

    def get(self, path: str, **query: str) -> Object:
        """The object or list at a path; Refused where there is none."""
        return self._ask("GET", path, None, query)

    def post(self, path: str, body: Object, **query: str) -> Object:
        """Create an object in the collection at a path; Refused where the server objects."""
        return self._ask("POST", path, body, query)

    def patch(self, path: str, body: Object, kind: str = "merge", **query: str) -> Object:
        """Change the object at a path by a patch of one of the kinds in PATCHES."""
        return self._ask("PATCH", path, body, query, PATCHES[kind])

    def delete(self, path: str, body: Object | None = None) -> None:
        """Delete the object at a path with DeleteOptions; that it is gone already is no error."""
        try:
            self._ask("DELETE", path, body, {})
        except Refused as refused:
            if refused.status not in (404, 409):
                raise

    def watch(self, path: str) -> Iterator[tuple[str, Object]]:
        """All objects of a collection and its changes, for ever: ("ADDED" | "MODIFIED" | "DELETED", object).

        The objects of a listing come as "ADDED" and end with ("LISTED", the list); after a lost connection
        there is another listing.
        """
        while True:
            try:
                listing = self.get(path)
                for item in listing["items"]:
                    yield "ADDED", item
                yield "LISTED", listing
                query = {"watch": "1", "resourceVersion": listing["metadata"]["resourceVersion"]}
                with self.client.stream("GET", path, params=query) as answer:
                    for line in answer.iter_lines():
                        change = json.loads(line)
                        if change["type"] == "ERROR":  # the version is too old: list again
                            break
                        yield change["type"], change["object"]
            except (httpx.TransportError, Refused):
                time.sleep(0.5)

    def apply(self, document: Object, manager: str = "tests", dry_run: bool = False) -> Object:
        """Server-side apply of a document of any kind; what the server made of it."""
        plural, namespaced = self.resource(document["apiVersion"], document["kind"])
        path = group_path(document["apiVersion"])
        if namespaced:
            path += f"/namespaces/{document['metadata'].get('namespace', 'default')}"
        query = {"fieldManager": manager, "force": "true", "fieldValidation": "Strict"}
        if dry_run:
            query["dryRun"] = "All"
        return self.patch(f"{path}/{plural}/{document['metadata']['name']}", document, "apply", **query)

    def _resource(self, version: str, kind: str) -> tuple[str, bool]:
        """The plural of a kind, and whether its objects live in namespaces."""
        for resource in self.get(group_path(version))["resources"]:
            if resource["kind"] == kind and "/" not in resource["name"]:
                return resource["name"], resource["namespaced"]
        raise Refused(404, "NotFound", f"the server knows no {kind} of {version}")

    def _ask(self, method: str, path: str, body: Object | None, query: dict[str, str], form: str = "") -> Object:
        content = None if body is None else json.dumps(body)
        headers = {"Content-Type": form or "application/json"}
        answer = self.client.request(method, path, content=content, params=query, headers=headers, timeout=60)
        try:
            found = answer.json()
        except ValueError:
            found = {"message": answer.text}
        if answer.is_error:
            raise Refused(answer.status_code, found.get("reason", ""), found.get("message", ""))
        return found


def group_path(version: str) -> str:
    """Where the API of a version such as "v1" or "batch/v1" lies."""
    return f"/apis/{version}" if "/" in version else f"/api/{version}"


def now(fine: bool = False) -> str:
    """This moment as the API writes it: in seconds, or in microseconds where a field is of type MicroTime."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ" if fine else "%Y-%m-%dT%H:%M:%SZ")
