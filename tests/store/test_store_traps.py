"""What clients of Google Cloud Storage are known to do wrong, and that it does not reach the store.

Each test is about one trap; other tests of this folder cover more of some.
"""

import os
import time

import pytest
from faults import Faults
from store_helpers import python

from nanocode_core.errors import StorageError
from nanocode_core.store import Files
from nanocode_core.store.remote import BLOCK_SIZE


@pytest.fixture
def root(faulty, tmp_path):
    return f"gs://bucket/{tmp_path.parent.name}-{tmp_path.name}"


def test_an_upload_that_fails_on_its_way_publishes_nothing(faulty, root, tmp_path):
    """A stream that is closed by an error would publish what it has: uploads are no streams."""
    files, source = Files(root), tmp_path / "source"
    files.write("kept", b"old")
    source.write_bytes(b"x" * 6_000_000)
    faulty.refuse(" part$")
    for name in ("new", "kept"):
        with pytest.raises(StorageError, match="has no permission to write"):
            files.upload(source, name)
    faulty.calm()
    assert files.list() == ["kept"]
    assert files.read("kept") == b"old"


UPLOAD = """
import sys
from pathlib import Path
from nanocode_core.store import Files
print("ready", flush=True)
Files(sys.argv[1]).upload(Path(sys.argv[2]), "large")
"""


def test_a_writer_that_is_killed_leaves_nothing_or_a_whole_object(faulty, root, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(os.urandom(3 * BLOCK_SIZE))
    with python(UPLOAD, root, source):
        while faulty.met["requests"] < 2:  # the session and the first of three parts
            time.sleep(0.001)
    found = Files(root).inventory("large") or Files(root).list()
    assert found in ([], ["large"])
    if found:
        Files(root).download("large", tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == source.read_bytes()


def test_a_large_upload_goes_by_requests_of_32_mib(faulty, root, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"x" * (BLOCK_SIZE + 1))
    files = Files(root)
    files.upload(source, "large")
    assert faulty.met["requests"] == 3  # the session, and two parts
    assert files.read("large") == source.read_bytes()


def test_the_answer_to_a_create_that_landed_may_get_lost(faulty, root):
    """The client's next try is told that the object is there: it is our own."""
    files = Files(root)
    for number in range(2):
        faulty.faults = Faults(lost=1.0, in_a_row=1)
        assert files.create(f"created{number}", b"nonce %d" % number)
        version = files.compare_and_swap(f"swapped{number}", None, b"nonce %d" % number)
        assert version == files.read_versioned(f"swapped{number}")[1]
        assert not files.create(f"created{number}", b"another")
    assert faulty.met["lost"] >= 4


def test_the_filesystem_that_libraries_open_themselves_sees_at_once_what_others_wrote(faulty, root):
    """Orbax goes through fsspec with its defaults, where listings would be remembered."""
    import fsspec

    files = Files(root)
    files.write("x/one", b"1")
    system, path = fsspec.core.url_to_fs(f"{root}/x")
    assert [name.rpartition("/")[2] for name in system.ls(path)] == ["one"]
    files.write("x/two", b"2")
    assert [name.rpartition("/")[2] for name in system.ls(path)] == ["one", "two"]
    assert system.exists(f"{path}/two")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_server_that_fails_for_good_is_told_within_minutes(faulty, root, tmp_path):
    files = Files(root)
    faulty.faults = Faults(unavailable=1.0, in_a_row=10**9)
    for act, most in (
        (lambda: files.write("a", b""), 120),
        (lambda: files.compare_and_swap("a", None, b"x"), 120),
        (lambda: files.read("a"), 240),
    ):
        begin = time.monotonic()
        with pytest.raises(StorageError, match="see to the network and run the same command again"):
            act()
        print(round(time.monotonic() - begin, 1), "s")
        assert time.monotonic() - begin < most
