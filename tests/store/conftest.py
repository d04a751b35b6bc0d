import subprocess
import uuid
from pathlib import Path

import pytest
from gcs import faulty, gcs, gcs_address  # noqa: F401 (fixtures)

from nanocode_core.store import Store


@pytest.fixture(params=["local", "memory"])
def root(request, tmp_path):
    return str(tmp_path / "store") if request.param == "local" else f"memory://{uuid.uuid4().hex}/store"


@pytest.fixture
def store(root, tmp_path):
    return Store(root, cache=tmp_path / "cache")


@pytest.fixture
def local(tmp_path):
    return Store(str(tmp_path / "store"), cache=tmp_path / "cache")


@pytest.fixture
def small_disk(tmp_path):
    """A directory on a file system of one MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs takes root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture
def read_only(tmp_path):
    """A function that makes a directory read-only, for root too."""
    mounts = []

    def make(path: Path):
        for command in (
            ["mount", "--bind", str(path), str(path)],
            ["mount", "-o", "remount,ro,bind", str(path), str(path)],
        ):
            if subprocess.run(command, capture_output=True).returncode:
                pytest.skip("mounting read-only takes root")
        mounts.append(path)

    yield make
    for path in mounts:
        subprocess.run(["umount", "-l", str(path)], check=True)
