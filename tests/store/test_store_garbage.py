import os
import time

import pytest
from store_helpers import put

from nanocode_core.errors import CorruptArtifact, UserError
from nanocode_core.store.garbage import garbage, sweep
from nanocode_core.store.store import lease_path


@pytest.fixture
def chain(store):
    """Two corpora, a tokenizer of the older one, and three runs of sft on that."""
    old = put(store, "corpus", "aa11", finished=1.0)
    tokenizer = put(store, "tokenizer", "bb22", inputs={"corpus": old}, finished=2.0)
    put(store, "corpus", "aa22", finished=3.0)
    put(store, "corpus", "aa33", finished=4.0)
    for number in range(3):
        put(store, "sft", f"cc{number}", inputs={"tokenizer": tokenizer}, finished=10.0 + number)
    return store


def test_the_newest_stay_with_all_they_are_made_from(chain):
    found = garbage(chain, keep=1)
    assert found.artifacts == (("sft", "cc1"), ("sft", "cc0"), ("corpus", "aa22"))
    assert found.size == 3 * 3015
    assert len(chain.records()) == 7
    assert sweep(chain, keep=1) == found
    assert {r.key for r in chain.records()} == {
        ("corpus", "aa11"),
        ("corpus", "aa33"),
        ("tokenizer", "bb22"),
        ("sft", "cc2"),
    }
    for record in chain.records():
        assert chain.verify(record) == []
    assert garbage(chain, keep=1).artifacts == ()


def test_keeping_more_or_none(chain):
    assert garbage(chain, keep=3).artifacts == ()
    assert len(garbage(chain, keep=0).artifacts) == 7
    with pytest.raises(UserError, match="keep must be 0 or more"):
        garbage(chain, keep=-1)


def test_nothing_goes_while_a_record_cannot_be_read(chain):
    chain.files.write("artifacts/dpo/dd44/artifact.json", b"{")
    with pytest.raises(CorruptArtifact, match="dpo/dd44"):
        sweep(chain)
    assert len(chain.published()) == 8


def test_nothing_goes_while_something_is_built(chain):
    with chain.lease("dpo", "dd44", 60.0) as lease:
        with pytest.raises(UserError, match=f"dpo/dd44 is being built by process {lease.owner.pid}"):
            sweep(chain)
        assert len(garbage(chain).artifacts) == 3
    assert len(sweep(chain).artifacts) == 3


def test_interrupted_work_is_kept_until_it_is_old_or_done(chain):
    for stage, key in (("sft", "cc2"), ("dpo", "new"), ("dpo", "old")):
        (chain.work_dir(stage, key) / "save").write_text("hours of work")
        chain.files.write(lease_path(stage, key), b"of a killed owner")
    week = time.time() - 8 * 86_400
    for path in [chain.work_dir("dpo", "old"), *chain.work_dir("dpo", "old").iterdir()]:
        os.utime(path, (week, week))
    found = sweep(chain)
    assert found.work == (("dpo", "old"), ("sft", "cc2"))
    assert (chain.work_root / "dpo" / "new" / "save").exists()
    assert not (chain.work_root / "dpo" / "old").exists()
    assert not (chain.work_root / "sft" / "cc2").exists()
    assert chain.files.list("work/dpo/old") == []
    assert garbage(chain, idle=-1.0).work == (("dpo", "new"),)


def test_what_killed_publishings_left_goes(chain):
    chain.files.write("artifacts/dpo/dd44/train/half", b"half")
    assert sweep(chain).leftovers == ("artifacts/dpo/dd44",)
    assert chain.files.list("artifacts/dpo") == []
    for record in chain.records():
        assert chain.verify(record) == []


def test_an_empty_store_has_no_garbage(store):
    found = sweep(store)
    assert (found.artifacts, found.work, found.leftovers, found.size) == ((), (), (), 0)
