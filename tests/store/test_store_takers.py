"""Fifty at once go for a lease and one gets it, on a real server of the storage protocol and on local files."""

import multiprocessing
import os
import sys
import threading
import time
from dataclasses import replace

import pytest

from nanocode_core.errors import LeaseLost
from nanocode_core.store import Files
from nanocode_core.store.leases import Holding, Owner, acquire

PROCESSES, THREADS = 5, 10
fork = multiprocessing.get_context("forkserver")


class Taken(Exception):
    """Somebody else holds it."""


def leave(owner):
    raise Taken(owner)


@pytest.fixture(params=["gs", "local"])
def root(request, tmp_path):
    if request.param == "local":
        return str(tmp_path / "store")
    request.getfixturevalue("gcs")
    return f"gs://bucket/{tmp_path.parent.name}-{tmp_path.name}"


def lease(number):
    return f"work/sft/{number}/lease.json"


def dead(seconds=60.0):
    """The lease of a process of this machine that is no more."""
    return Holding(replace(Owner.me(), started="1"), 0, time.time(), seconds).to_json()


def _take(root, rounds, start, end, results):
    """In each round try to take its lease; who gets it holds it until all have tried."""
    files = Files(root)
    for number in range(rounds):
        start.wait(120)
        try:
            with acquire(files, lease(number), 60.0, waiting=leave) as held:
                end.wait(120)
                held.check()
                results.put((number, True))
        except Taken:
            results.put((number, False))
            end.wait(120)


def _take_in_threads(variables, *arguments):
    os.environ.update(variables)  # the server that forks may be older than gs:// here
    sys.setswitchinterval(0.001)
    threads = [threading.Thread(target=_take, args=arguments) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def race(root, rounds):
    """The winners of each round. Every second one begins with the lease of an owner who is dead."""
    files = Files(root)
    for number in range(1, rounds, 2):
        files.write(lease(number), dead())
    takers = PROCESSES * THREADS
    start, end, results = fork.Barrier(takers), fork.Barrier(takers), fork.Queue()
    arguments = (dict(os.environ), root, rounds, start, end, results)
    processes = [fork.Process(target=_take_in_threads, args=arguments) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    winners = [0] * rounds
    for _ in range(rounds * takers):
        number, won = results.get(timeout=250)
        winners[number] += won
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert files.list("work") == []
    return winners


@pytest.mark.timeout(900)
def test_of_fifty_takers_one_wins_a_hundred_times(root):
    assert race(root, 100) == [1] * 100


def elsewhere(seconds):
    """The lease of a process of another machine, which renews it no more."""
    return Holding(replace(Owner.me(), host="elsewhere", boot="another", pid=1), 3, time.time(), seconds).to_json()


def test_a_holder_that_stopped_is_succeeded_by_exactly_one_at_a_time(root):
    files = Files(root)
    files.write(lease(0), elsewhere(1.5))
    inside, succeeded, together = threading.Lock(), [], []
    held_by_the_first = threading.Event()

    def follow():
        with acquire(Files(root), lease(0), 60.0) as held:
            together.append(inside.acquire(blocking=False))
            if not succeeded:  # the others see it held while they wait
                held_by_the_first.set()
                time.sleep(1.0)
            succeeded.append(held.owner.nonce)
            inside.release()

    threads = [threading.Thread(target=follow) for _ in range(8)]
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    assert held_by_the_first.wait(60)
    assert time.monotonic() - begin >= 1.5
    for thread in threads:
        thread.join()
    assert together == [True] * 8
    assert len(set(succeeded)) == 8


def test_a_holder_that_wakes_up_after_its_expiry_notices_that_it_lost(root, monkeypatch):
    """As when a machine is suspended: its threads stand still, another takes over, then it goes on."""
    files = Files(root)
    asleep, awake, told = threading.Event(), threading.Event(), threading.Event()
    swap = files.compare_and_swap

    def sleep(path, version, data):
        if asleep.is_set():
            awake.wait(60)
        return swap(path, version, data)

    monkeypatch.setattr(files, "compare_and_swap", sleep)
    sleeper = acquire(files, lease(0), 1.5, lost=lambda reason: told.set())
    asleep.set()
    # It is another machine for the one that follows, which has to see the lease expire.
    data, version = Files(root).read_versioned(lease(0))
    holding = Holding.parse(data)
    foreign = replace(holding, owner=replace(holding.owner, host="elsewhere", boot="another"))
    assert Files(root).compare_and_swap(lease(0), version, foreign.to_json())
    with acquire(Files(root), lease(0), 60.0) as heir:
        awake.set()
        with pytest.raises(LeaseLost, match=r"could not be renewed|taken over by"):
            sleeper.check()
        assert told.wait(60)
        sleeper.release()
        heir.check()
        assert Holding.parse(Files(root).read(lease(0))).owner == heir.owner
