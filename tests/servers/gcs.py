"""A server of the Google Cloud Storage protocol, and the environment that leads every client to it.

A conftest.py that imports the two fixtures gives its tests `gcs`.
"""

import json
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import fsspec
import pytest
from faults import FaultProxy, fault_proxy
from programs import find_program


@contextmanager
def gcs_server(*buckets: str) -> Iterator[str]:
    """The address of a server with these (empty) buckets; it keeps objects in memory."""
    program = find_program("fake-gcs-server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    options = ["-backend", "memory", "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    process = subprocess.Popen(
        [program, *options, "-external-url", address, "-public-host", f"127.0.0.1:{port}", "-log-level", "error"]
    )
    try:
        for _ in range(100):
            try:
                urllib.request.urlopen(f"{address}/_internal/healthcheck", timeout=1)
                break
            except OSError:
                time.sleep(0.1)
        for bucket in buckets:
            body = json.dumps({"name": bucket}).encode()
            request = urllib.request.Request(
                f"{address}/storage/v1/b?project=test", body, {"Content-Type": "application/json"}
            )
            urllib.request.urlopen(request, timeout=5)
        yield address
    finally:
        process.kill()
        process.wait()


def environment(address: str) -> dict[str, str]:
    """Variables for processes whose gs:// is the server at `address`, without credentials."""
    return {
        "STORAGE_EMULATOR_HOST": address,  # gcsfs and google-cloud-storage
        "FSSPEC_GCS_TOKEN": "anon",
        "FSSPEC_GS_TOKEN": "anon",
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",  # tensorstore looks for no other
        "GOOGLE_CLOUD_PROJECT": "test",
        "NO_GCE_CHECK": "true",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # read at the import; else gcsfs asks another API, for minutes
    }


@pytest.fixture(scope="session")
def gcs_address() -> Iterator[str]:
    """The address of a server with a bucket `bucket`."""
    with gcs_server("bucket") as address:
        yield address


@pytest.fixture(scope="module")
def gcs(gcs_address: str) -> Iterator[str]:
    """The same, and gs:// leads there in this module."""
    with leading_to(gcs_address):
        yield gcs_address


@pytest.fixture
def faulty(gcs_address: str) -> Iterator[FaultProxy]:
    """A proxy before that server, and gs:// leads to it in this test: see `FaultProxy` for what it can do."""
    with fault_proxy(gcs_address) as proxy, leading_to(proxy.address):
        yield proxy


@contextmanager
def leading_to(address: str) -> Iterator[None]:
    """In this process and its children gs:// leads to the server at `address`."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(address).items():
            patch.setenv(name, value)
        from gcsfs.core import GCSFileSystem

        for name in ("gcs", "gs"):
            patch.setitem(fsspec.config.conf, name, {"token": "anon"})
        GCSFileSystem.clear_instance_cache()
        yield
        GCSFileSystem.clear_instance_cache()
