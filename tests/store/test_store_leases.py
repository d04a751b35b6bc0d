import fcntl
import json
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import replace

import pytest
from store_helpers import put, python

from nanocode_core.errors import LeaseLost, StorageError
from nanocode_core.store import Files, Store
from nanocode_core.store.leases import Holding, Owner, acquire, live_owner
from nanocode_core.store.local import rmtree

fork = multiprocessing.get_context("forkserver")
PATH = "work/sft/ab12/lease.json"


@pytest.fixture
def files(tmp_path):
    return Files(str(tmp_path / "store"))


def owner(files, path=PATH):
    return Holding.parse(files.read(path)).owner


def elsewhere(seconds=2.0, renewed=None):
    """A lease as another machine would have written it."""
    foreign = replace(Owner.me(), host="elsewhere", boot="another-boot", pid=1)
    return Holding(foreign, 0, time.time() if renewed is None else renewed, seconds)


def test_a_lease_is_there_while_it_is_held(root):
    files = Files(root)
    with acquire(files, PATH, 30.0) as lease:
        assert owner(files) == lease.owner
        assert lease.owner.pid == os.getpid()
        assert live_owner(files, PATH) == lease.owner
        lease.check()
    assert not files.exists(PATH)
    assert live_owner(files, PATH) is None


def test_release_leaves_no_empty_directory(files):
    with acquire(files, PATH, 30.0):
        assert files.list() == [PATH]
    assert not (files.directory / "work/sft/ab12").exists()


def test_a_lease_is_given_back_after_an_error(files):
    with pytest.raises(ZeroDivisionError), acquire(files, PATH, 30.0):
        raise ZeroDivisionError
    assert not files.exists(PATH)


def test_heartbeats_keep_a_lease_past_its_expiry(root):
    files = Files(root)
    lost, waited, got = [], [], threading.Event()

    def rival():
        with acquire(files, PATH, 0.6, waiting=waited.append):
            got.set()

    with acquire(files, PATH, 0.6, lost=lost.append) as lease:
        thread = threading.Thread(target=rival)
        thread.start()
        assert not got.wait(2.5)
        assert owner(files) == lease.owner
        lease.check()
    assert got.wait(5)
    thread.join()
    assert lost == []
    assert waited == [f"process {os.getpid()} on {lease.owner.host}"]


HOLDER = """
import sys, time
from nanocode_core.store import Files
from nanocode_core.store.leases import acquire
with acquire(Files(sys.argv[1]), sys.argv[2], 60.0):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_killed_owner_of_this_machine_is_followed_at_once(files):
    waited = threading.Event()
    with python(HOLDER, files.root, PATH) as holder:
        assert holder.first == "held\n"
        killer = threading.Thread(target=lambda: (waited.wait(10), holder.send_signal(signal.SIGKILL)))
        killer.start()
        begin = time.monotonic()
        # Its body is not waited for by then: a zombie counts as dead, too.
        with acquire(files, PATH, 60.0, waiting=lambda text: waited.set()) as lease:
            assert time.monotonic() - begin < 6
            assert owner(files) == lease.owner
        killer.join()
    assert waited.is_set()


def test_a_recycled_pid_is_not_the_owner(files):
    past = Holding(replace(Owner.me(), started="1"), 0, time.time(), 60.0)
    files.write(PATH, past.to_json())
    begin = time.monotonic()
    with acquire(files, PATH, 60.0):
        assert time.monotonic() - begin < 1


@pytest.mark.parametrize("skew", [-1e6, 0.0, 1e6])
def test_an_owner_elsewhere_is_followed_only_after_its_expiry_whatever_its_clock_says(files, skew):
    files.write(PATH, elsewhere(1.2, time.time() + skew).to_json())
    begin = time.monotonic()
    waited = []
    with acquire(files, PATH, 60.0, waiting=waited.append):
        assert 1.2 <= time.monotonic() - begin < 4
    assert waited == ["process 1 on elsewhere"]


@pytest.mark.parametrize("field", ["boot", "namespace", "host"])
def test_pids_of_another_machine_boot_or_container_say_nothing(field):
    dead = replace(Owner.me(), started="1")
    assert dead.is_dead()
    assert not replace(dead, **{field: "another"}).is_dead()
    assert not Owner.me().is_dead()


@pytest.mark.parametrize("data", [b"", b"{}", b"junk", b'{"owner": {}}', b'{"owner": 3}'])
def test_a_strange_lease_file_expires_as_well(files, data):
    files.write(PATH, data)
    waited = []
    with acquire(files, PATH, 0.5, waiting=waited.append):
        pass
    assert waited == ["an unknown owner"]


def test_a_lost_lease_is_told_and_not_taken_back(root):
    files = Files(root)
    lost, told = [], threading.Event()
    with acquire(files, PATH, 1.0, lost=lambda reason: (lost.append(reason), told.set())) as lease:
        files.write(PATH, elsewhere().to_json())
        assert told.wait(5)
        with pytest.raises(LeaseLost, match="taken over by process 1 on elsewhere"):
            lease.check()
    assert lost == [f"the lease {PATH} was taken over by process 1 on elsewhere"]
    assert owner(files).host == "elsewhere"


def test_check_notices_at_once(files):
    lost = []
    with acquire(files, PATH, 1000.0, lost=lost.append) as lease:
        files.write(PATH, elsewhere().to_json())
        with pytest.raises(LeaseLost):
            lease.check()
    assert owner(files).host == "elsewhere"
    assert lost == []


def test_an_owner_that_cannot_renew_gives_up_before_others_may_follow(files):
    told, reasons = threading.Event(), []
    lease = acquire(files, PATH, 1.0, lost=lambda reason: (reasons.append(reason), told.set()))
    with open(files.directory / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        begin = time.monotonic()
        assert told.wait(5)
        assert time.monotonic() - begin < 1.3
    with pytest.raises(LeaseLost):
        lease.check()
    lease.release()
    time.sleep(0.5)
    assert reasons == [f"the lease {PATH} could not be renewed for 1 s"]


def test_a_removed_lease_is_lost_unless_the_work_is_done(files):
    for done, expected in ((False, [f"the lease {PATH} was removed"]), (True, [])):
        lost = []
        with acquire(files, PATH, 0.4, lost=lost.append, finished=lambda done=done: done):
            files.delete(PATH)
            time.sleep(0.5)
        assert lost == expected
        assert not files.exists(PATH)


def test_the_worker_may_clear_its_directory_before_the_lease_ends(store):
    # As the worker does: publish, remove the work directory with the lease in it, then release.
    lost = []
    with store.lease("sft", "ab12", 0.4, lost=lost.append):
        put(store, "sft", "ab12")
        time.sleep(0.5)
    assert lost == []
    assert store.record("sft", "ab12") is not None
    assert store.files.list("work") == []
    assert not (store.work_root / "sft" / "ab12").exists()


def test_no_heartbeat_brings_a_cleared_directory_back(tmp_path):
    store = Store(str(tmp_path))
    for number in range(20):
        key = f"ab{number}"
        with store.lease("sft", key, 0.02 if number % 2 else 0.04, lost=lambda reason: None):
            work = store.work_dir("sft", key)
            time.sleep(0.01)
            rmtree(work)
        assert not work.exists()


def test_a_lease_in_a_store_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="is not"):
        acquire(Files(str(tmp_path / "file" / "store")), PATH, 60.0)


def test_for_cleaning_up_only_long_silence_counts_as_death(files):
    files.write(PATH, elsewhere(60.0).to_json())
    assert live_owner(files, PATH).host == "elsewhere"
    files.write(PATH, elsewhere(60.0, time.time() - 3600).to_json())
    assert live_owner(files, PATH) is None
    files.write(PATH, Holding(replace(Owner.me(), started="1"), 0, time.time(), 60.0).to_json())
    assert live_owner(files, PATH) is None


def _take_turns(root, rounds, barrier, queue):
    files = Files(root)
    inside = files.directory / "inside"
    built = []
    for number in range(rounds):
        barrier.wait()
        with acquire(files, f"work/sft/{number}/lease.json", 1.0):
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
            if not files.exists(f"done/{number}"):
                files.write(f"done/{number}", b"")
                built.append(number)
            os.unlink(inside)
    queue.put(built)


def test_of_twenty_takers_one_is_inside_and_one_builds(files):
    rounds, takers = 3, 20
    # Each round starts with a lease whose owner is dead, so that all twenty go for it at once.
    for number in range(rounds):
        dead = Holding(replace(Owner.me(), started="1"), 0, time.time(), 60.0)
        files.write(f"work/sft/{number}/lease.json", dead.to_json())
    barrier, queue = fork.Barrier(takers), fork.Queue()
    processes = [fork.Process(target=_take_turns, args=(files.root, rounds, barrier, queue)) for _ in range(takers)]
    for process in processes:
        process.start()
    built = sorted(number for _ in processes for number in queue.get(timeout=60))
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert built == list(range(rounds))
    assert files.list("work") == []


def test_the_lease_file_is_readable_by_people(files):
    with acquire(files, PATH, 60.0):
        value = json.loads(files.read(PATH))
    assert value["owner"]["pid"] == os.getpid()
    assert value["seconds"] == 60.0
