"""Fixtures for tests of all parts."""

from collections.abc import Iterator

import fsspec
import pytest
from gcs import environment, gcs_server


@pytest.fixture(scope="session")
def _gcs_address() -> Iterator[str]:
    with gcs_server("bucket") as address:
        yield address


@pytest.fixture(scope="module")
def gcs(_gcs_address: str) -> Iterator[str]:
    """The address of a server of Google Cloud Storage with a bucket `bucket`; gs:// leads there in this module."""
    from gcsfs.core import GCSFileSystem

    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(_gcs_address).items():
            patch.setenv(name, value)
        for name in ("gcs", "gs"):
            patch.setitem(fsspec.config.conf, name, {"token": "anon"})
        GCSFileSystem.clear_instance_cache()
        yield _gcs_address
        GCSFileSystem.clear_instance_cache()
