"""The copy of a work directory in a remote store: what is uploaded, what another machine gets, what is refused."""

import os
import secrets
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanocode_core.errors import LeaseLost, StorageError
from nanocode_core.store import Files
from nanocode_core.store.mirror import MARK, MOST_PIECES, Mirror, read_index

FOLDER = "work/stage/0123"


@pytest.fixture
def files() -> Files:
    return Files(f"memory://{secrets.token_hex(8)}")


def content(directory: Path) -> dict[str, bytes]:
    found = (path for path in directory.rglob("*") if path.is_file() and path.name != MARK)
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in found}


def pieces(files: Files) -> list[str]:
    return files.list(f"{FOLDER}/pieces")


def elsewhere(files: Files, place: Path) -> dict[str, bytes]:
    """What another machine gets."""
    Mirror(files, FOLDER, place).restore()
    return content(place)


def test_another_machine_goes_on_from_the_last_save(files: Files, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    (here / "log.jsonl").write_text("one\n")
    (here / "out" / "deep").mkdir(parents=True)
    (here / "out" / "deep" / "empty").touch()
    (here / "partial.tmp").write_text("not yet")
    os.utime(here / "log.jsonl", ns=(10**18, 10**18))
    mirror = Mirror(files, FOLDER, here)
    assert not mirror.restore()
    mirror.save()
    (here / "log.jsonl").open("a").write("two\n")  # after the save
    assert Mirror(files, FOLDER, there).restore()
    assert content(there) == {"log.jsonl": b"one\n", "out/deep/empty": b""}
    assert (there / "log.jsonl").stat().st_mtime_ns == 10**18
    # The first machine still has more than was saved, and goes on from that.
    assert not Mirror(files, FOLDER, here).restore()
    assert (here / "log.jsonl").read_text() == "one\ntwo\n"


def test_of_a_file_that_grows_only_the_end_is_uploaded(files: Files, tmp_path: Path) -> None:
    log, whole = tmp_path / "here" / "log", b""
    log.parent.mkdir()
    mirror = Mirror(files, FOLDER, log.parent)
    for number in range(MOST_PIECES + 3):
        line = f"line {number}\n".encode()
        log.open("ab").write(line)
        whole += line
        mirror.save()
        sizes = [len(files.read(path)) for path in pieces(files)]
        assert sum(sizes) == len(whole)
        assert len(sizes) == number + 1 if number < MOST_PIECES else len(sizes) <= 3
    assert elsewhere(files, tmp_path / "there") == {"log": whole}


def test_what_did_not_change_is_not_saved_again(files: Files, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a").write_text("x")
    mirror = Mirror(files, FOLDER, tmp_path / "here")
    mirror.save()
    index, before = files.read(f"{FOLDER}/mirror.json"), pieces(files)
    mirror.save()
    assert (files.read(f"{FOLDER}/mirror.json"), pieces(files)) == (index, before)


@settings(max_examples=60, deadline=None)
@given(
    rounds=st.lists(
        st.lists(
            st.tuples(
                st.sampled_from("abc"),
                st.one_of(st.none(), st.tuples(st.booleans(), st.binary(max_size=40)), st.integers(0, 30)),
            ),
            max_size=4,
        ),
        max_size=6,
    )
)
def test_after_any_changes_a_save_holds_what_is_there(
    rounds: list[list[tuple[str, int | tuple[bool, bytes] | None]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Each round appends to, replaces, cuts or removes files, then saves."""
    files, tmp_path = Files(f"memory://{secrets.token_hex(8)}"), tmp_path_factory.mktemp("mirror")
    here = tmp_path / "here"
    here.mkdir()
    mirror = Mirror(files, FOLDER, here)
    for number, changes in enumerate(rounds):
        for name, change in changes:
            path = here / name
            if change is None:
                path.unlink(missing_ok=True)
            elif isinstance(change, int):
                if path.exists():
                    os.truncate(path, min(change, path.stat().st_size))
            else:
                path.open("ab" if change[0] else "wb").write(change[1])
            if path.exists():  # a clock that is coarser than this test must not hide a change
                os.utime(path, ns=(number, secrets.randbelow(2**50)))
        mirror.save()
        assert elsewhere(files, tmp_path / "there") == content(here)
        index, _ = read_index(files, FOLDER)
        used = {id_ for entry in index.files.values() for id_, _ in entry.pieces} if index else set()
        assert {path.rpartition("/")[2] for path in pieces(files)} == used


def test_who_was_overtaken_by_another_machine_may_not_save(files: Files, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    (first / "a").write_text("1")
    old = Mirror(files, FOLDER, first)
    old.save()
    new = Mirror(files, FOLDER, second)
    new.restore()
    (second / "a").write_text("22")
    new.save()
    (first / "a").write_text("333")
    with pytest.raises(LeaseLost):
        old.save()
    # What the overtaken machine had beyond its last save goes when it comes back.
    assert Mirror(files, FOLDER, first).restore()
    assert content(first) == {"a": b"22"}


def test_removing_the_copy_begins_the_work_anew_here_too(files: Files, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a").write_text("1")
    Mirror(files, FOLDER, tmp_path / "here").save()
    files.clear(FOLDER)
    assert Mirror(files, FOLDER, tmp_path / "here").restore()
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "index"])
def test_a_damaged_copy_is_refused_in_one_line(files: Files, tmp_path: Path, damage: str) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a").write_bytes(b"12345")
    Mirror(files, FOLDER, tmp_path / "here").save()
    piece = pieces(files)[0]
    if damage == "missing":
        files.delete(piece)
    elif damage == "index":
        files.write(f"{FOLDER}/mirror.json", b"{}")
    else:
        files.write(piece, b"1234" if damage == "cut" else b"12346")
    with pytest.raises(StorageError, match=rf"remove {files.root}/{FOLDER} to begin") as error:
        elsewhere(files, tmp_path / "there")
    assert "\n" not in str(error.value)


def test_a_save_in_the_background_that_fails_is_told_once_and_tried_again(tmp_path: Path) -> None:
    root = f"memory://{secrets.token_hex(8)}"

    class Failing(Files):
        failures = 3

        def upload(self, source: Path, path: str) -> None:
            Failing.failures -= 1
            if Failing.failures >= 0:
                raise StorageError("the network is down")
            super().upload(source, path)

    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a").write_text("1")
    told: list[str] = []
    with Mirror(Failing(root), FOLDER, tmp_path / "here", seconds=0.01, log=told.append):
        while read_index(Files(root), FOLDER)[0] is None:
            pass
    assert len(told) == 1
    assert "the network is down" in told[0]
    assert elsewhere(Files(root), tmp_path / "there") == {"a": b"1"}
