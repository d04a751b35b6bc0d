"""A cluster for all tests of a session, a namespace and a node agent for each."""

import itertools
import subprocess
from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest
from agent import Agent
from cluster import Cluster
from gcs import gcs, gcs_address  # noqa: F401 (fixtures)
from programs import PACKAGES, find_program, has_go

NUMBERS = itertools.count(1)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build what the chosen tests need, here or elsewhere, before the first: building takes longer than a test may."""
    needed: set[str] = set()
    for item in session.items:
        if item.get_closest_marker("k8s"):
            needed.update(PACKAGES)
        elif "gcs_address" in getattr(item, "fixturenames", ()):
            needed.add("fake-gcs-server")
    with suppress(subprocess.CalledProcessError):  # the tests that need it say so
        for name in sorted(needed) if has_go() else ():
            find_program(name)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running control plane without nodes."""
    with Cluster() as cluster:
        yield cluster
        started = [psutil.Process(process.pid) for process in cluster.processes.values()]
        started += [child for process in started for child in process.children(recursive=True)]
    assert not [process for process in started if process.is_running()]


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A new namespace; it goes away without a wait for its contents."""
    name = cluster.namespace(f"test-{next(NUMBERS)}")
    yield name
    cluster.api.delete(f"/api/v1/namespaces/{name}")


@pytest.fixture
def agent(cluster: Cluster) -> Iterator[Agent]:
    """A node agent without nodes."""
    with cluster.agent() as agent:
        yield agent
