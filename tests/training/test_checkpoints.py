"""Checkpoints: what is written while steps go on, what counts, what is refused, what is kept."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nanocode_core.config.model import Checkpoints as CheckpointsConfig
from nanocode_core.errors import StorageError, UserError
from nanocode_core.store import Files
from nanocode_core.training.checkpoints import Checkpoints
from nanocode_core.training.manifest import MANIFEST

State = dict[str, jax.Array]


def state(value: float) -> State:
    return {"a": jnp.full((3, 4), value), "b": jnp.asarray(int(value))}


def save(directory: Path, *steps: int, keep: int = 2) -> None:
    checkpoints = Checkpoints(directory, CheckpointsConfig(keep=keep))
    for step in steps:
        checkpoints.save(step, state(step), {"loss": step / 2})
    checkpoints.wait()
    checkpoints.close()


def newest(directory: Path, log: list[str] | None = None) -> int | None:
    checkpoints = Checkpoints(directory, CheckpointsConfig(), [].append if log is None else log.append)
    saved = checkpoints.newest()
    checkpoints.close()
    return saved.step if saved else None


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_save_holds_its_own_step_while_donating_steps_go_on(tmp_path: Path) -> None:
    """The CPU is the hard case: there a host array can be the device's own memory."""
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    now: State = {"large": jnp.zeros((8, 1024, 256)), "rows": jnp.zeros((40, 7)), "scalar": jnp.zeros(())}
    checkpoints = Checkpoints(tmp_path, CheckpointsConfig(keep=20))
    before, now = now, step(now)
    assert all(x.is_deleted() for x in jax.tree.leaves(before)), "without a save, a step takes its input over"
    now = jax.tree.map(jnp.zeros_like, now)
    running = 0
    for save in range(1, 9):
        for _ in range(5):
            now = step(now)
        checkpoints.save(save, now)
        for _ in range(20):
            now = step(now)
            jax.block_until_ready(now)
            running += not (tmp_path / str(save) / MANIFEST).exists()
    assert running > 20, "steps ended while a save was still being written"
    checkpoints.wait()
    for save in range(1, 9):
        restored = checkpoints.restore(save, now)
        for x in jax.tree.leaves(restored):
            assert np.unique(np.asarray(x)).tolist() == [25 * save - 20]
    checkpoints.close()


def test_a_save_keeps_the_loop_less_than_it_takes(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, CheckpointsConfig())
    large = {"x": jnp.ones((64, 1024, 256))}
    shares = []
    for step in range(1, 4):
        start = time.perf_counter()
        checkpoints.save(step, large)
        called = time.perf_counter() - start
        checkpoints.wait()
        shares.append(called / (time.perf_counter() - start))
    checkpoints.close()
    assert min(shares) < 0.5


def test_a_checkpoint_counts_only_with_its_manifest(tmp_path: Path) -> None:
    save(tmp_path, 3, 6, 9)
    assert names(tmp_path) == ["6", "9"]
    (tmp_path / "9" / MANIFEST).unlink()
    # What a kill in the middle of Orbax's writing leaves, and in the middle of the manifest's.
    shutil.copytree(tmp_path / "6", tmp_path / "12.orbax-checkpoint-tmp-1")
    shutil.copytree(tmp_path / "9", tmp_path / "15")
    (tmp_path / "15" / ".0123456789abcdef.tmp").write_text("{")
    log: list[str] = []
    assert newest(tmp_path, log) == 6
    assert names(tmp_path) == ["6"]
    removed = ("12.orbax-checkpoint-tmp-1", "15", "9")
    assert sorted(log) == [f"checkpoint {name} was not complete: removed" for name in removed]
    save(tmp_path, 9)
    assert newest(tmp_path) == 9


def test_nothing_saved_is_no_error(tmp_path: Path) -> None:
    assert newest(tmp_path / "none") is None


def files(directory: Path) -> list[Path]:
    return sorted(p for p in directory.rglob("*") if p.is_file() and p.name != MANIFEST)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize(
    ("damage", "says"),
    [(flip, "has changed"), (cut, "bytes instead of"), (Path.unlink, "is missing")],
    ids=["flip", "cut", "missing"],
)
def test_damage_to_any_file_is_found_and_the_one_before_is_used(tmp_path: Path, damage, says: str) -> None:  # type: ignore[no-untyped-def]
    save(tmp_path / "good", 3, 6)
    for number, victim in enumerate(files(tmp_path / "good" / "6")):
        here = tmp_path / f"case-{number}"
        shutil.copytree(tmp_path / "good", here)
        damage(here / victim.relative_to(tmp_path / "good"))
        log: list[str] = []
        assert newest(here, log) == 3
        name = victim.relative_to(tmp_path / "good" / "6").as_posix()
        assert len(log) == 1
        assert log[0].startswith(f"WARNING: CHECKPOINT {here / '6'} IS DAMAGED AND NOT USED: {name} ")
        assert says in log[0]
        # Its files stay until the next save, but it counts no more.
        assert newest(here, log) == 3
        assert len(log) == 1
        assert names(here) == ["3", "6"]
    save(here, 6)
    assert names(here) == ["3", "6"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', '{"format": 9}'])
def test_a_damaged_manifest_is_refused(tmp_path: Path, content: str) -> None:
    save(tmp_path, 3, 6)
    (tmp_path / "6" / MANIFEST).write_text(content)
    log: list[str] = []
    assert newest(tmp_path, log) == 3
    assert MANIFEST in log[0]


def test_a_manifest_of_another_checkpoint_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 3, 6)
    (tmp_path / "6").rename(tmp_path / "9")
    assert newest(tmp_path) == 3


def test_if_all_are_damaged_that_is_an_error_every_time(tmp_path: Path) -> None:
    save(tmp_path, 3, 6)
    for step in ("3", "6"):
        flip(files(tmp_path / step)[-1])
    for _ in range(2):
        with pytest.raises(UserError) as error:
            newest(tmp_path)
        message = str(error.value)
        assert "\n" not in message
        assert f"all checkpoints in {tmp_path} are damaged (6: " in message
        assert "; 3: " in message
        assert "remove that directory to start again" in message
        assert names(tmp_path) == ["3", "6"]


def test_the_last_are_kept_and_the_old_one_only_goes_for_a_complete_new_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, CheckpointsConfig(keep=1))
    checkpoints.save(1, state(1))
    checkpoints.wait()
    for step in range(2, 6):
        checkpoints.save(step, state(step))
        complete = False
        while not complete:
            kept = (tmp_path / str(step - 1) / MANIFEST).exists()
            complete = (tmp_path / str(step) / MANIFEST).exists()  # looked at later: it may have come in between
            assert kept or complete
        checkpoints.wait()
    assert names(tmp_path) == ["5"]
    checkpoints.close()


def test_facts_come_back(tmp_path: Path) -> None:
    save(tmp_path, 4)
    checkpoints = Checkpoints(tmp_path, CheckpointsConfig())
    saved = checkpoints.newest()
    assert saved is not None
    assert (saved.step, saved.facts) == (4, {"loss": 2.0})
    restored = checkpoints.restore(4, state(0))
    assert np.array_equal(restored["a"], state(4)["a"])
    assert int(restored["b"]) == 4
    checkpoints.close()


def test_a_save_that_failed_is_reported(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "x", CheckpointsConfig())
    checkpoints.newest()
    (tmp_path / "x").write_text("a file where the directory should be")
    with pytest.raises(StorageError, match=r"not a directory|file exists"):  # noqa: PT012 (either may raise it)
        checkpoints.save(1, state(1))
        checkpoints.wait()
    checkpoints.close()


def test_a_save_counts_only_after_what_it_waits_for(tmp_path: Path) -> None:
    def refuse() -> None:
        assert not (tmp_path / "1" / MANIFEST).exists()
        raise StorageError("the metrics could not be copied")

    checkpoints = Checkpoints(tmp_path, CheckpointsConfig(), before_seal=refuse)
    checkpoints.save(1, state(1))
    with pytest.raises(StorageError, match="could not be copied"):
        checkpoints.wait()
    checkpoints.close()
    assert newest(tmp_path) is None


def test_a_checkpoint_of_another_model_is_refused_in_words(tmp_path: Path) -> None:
    save(tmp_path, 4)
    checkpoints = Checkpoints(tmp_path, CheckpointsConfig())
    with pytest.raises(UserError, match=r"does not fit this model and optimizer .* remove"):
        checkpoints.restore(4, {"a": jnp.zeros((5, 4)), "b": jnp.asarray(0), "c": jnp.zeros(2)})
    checkpoints.close()


def test_checkpoints_are_due_by_steps_and_by_the_clock(tmp_path: Path) -> None:
    by_step = Checkpoints(tmp_path / "a", CheckpointsConfig(minutes=10, steps=5))
    assert [step for step in range(1, 12) if by_step.due_by_step(step)] == [5, 10]
    assert not by_step.due_by_clock()
    by_clock = Checkpoints(tmp_path / "b", CheckpointsConfig(minutes=1e-9))
    assert by_clock.due_by_clock()
    assert not by_clock.due_by_step(1)
    by_step.close()
    by_clock.close()


RESHARD = """
import json, sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from pathlib import Path
from nanocode_core.config.model import Checkpoints as CheckpointsConfig
from nanocode_core.training.checkpoints import Checkpoints

def sharding(devices, *spec):
    return NamedSharding(Mesh(np.array(jax.devices()[:devices]).reshape(-1, 1), ("fsdp", "data")), PartitionSpec(*spec))

specs = {"matrix": ("fsdp", "data"), "whole": (), "vector": ("fsdp",)}
host = {"matrix": np.arange(64 * 8, dtype=np.float32).reshape(64, 8), "whole": np.arange(5), "vector": np.arange(16.0)}
done = []
for here in (1, 2, 8):
    place = Path(sys.argv[1], str(here))
    checkpoints = Checkpoints(place, CheckpointsConfig())
    state = {name: jax.device_put(x, sharding(here, *specs[name])) for name, x in host.items()}
    checkpoints.save(7, state)
    checkpoints.wait()
    for there in (1, 2, 4, 8):
        to = {name: sharding(there, *specs[name]) for name in state}
        like = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to[name]) for name, x in state.items()}
        back = checkpoints.restore(7, like)
        ok = all(np.array_equal(np.asarray(back[name]), host[name]) and back[name].sharding == to[name] for name in to)
        done.append([here, there, ok and len(back["matrix"].addressable_shards)])
    checkpoints.close()
print(json.dumps(done))
"""


def test_a_checkpoint_is_restored_onto_another_number_of_devices(tmp_path: Path) -> None:
    variables = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    ended = subprocess.run(
        [sys.executable, "-c", RESHARD, str(tmp_path)], capture_output=True, text=True, env=variables, check=False
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found == [[here, there, there] for here in (1, 2, 8) for there in (1, 2, 4, 8)]


# On gs://, where a subprocess talks to the server: Orbax's client reads its settings once.
ON_GS = """
import sys
import jax.numpy as jnp
from nanocode_core.config.model import Checkpoints as Config
from nanocode_core.training.checkpoints import Checkpoints

def state(value):
    return {"a": jnp.full((300, 4), value), "b": jnp.asarray(int(value))}

log = []
for start in range(3):
    checkpoints = Checkpoints(sys.argv[1], Config(keep=2), log.append)
    saved = checkpoints.newest()
    first = saved.step if saved else 0
    if saved:
        assert saved.facts == {"loss": first / 2}
        restored = checkpoints.restore(first, state(0))
        assert restored["a"].tolist() == state(first)["a"].tolist() and int(restored["b"]) == first
    for step in (first + 1, first + 2):
        checkpoints.save(step, state(step), {"loss": step / 2})
    checkpoints.wait()
    checkpoints.close()
print(log)
"""


def test_checkpoints_on_gs(gcs: str, tmp_path: Path) -> None:
    url = f"gs://bucket/{tmp_path.name}/checkpoints"
    done = subprocess.run([sys.executable, "-c", ON_GS, url], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    bucket = Files(url)
    assert bucket.names() == ["5", "6"]
    bucket.delete(next(path for path in bucket.list("6") if "/d/" in path))  # an array's bytes
    bucket.write("5/partly", b"")
    bucket.write("7/array", b"half-written")
    done = subprocess.run([sys.executable, "-c", ON_GS, url], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    log = done.stdout.splitlines()[-1]
    assert "checkpoint 7 was not complete: removed" in log
    assert f"WARNING: CHECKPOINT {url}/6 IS DAMAGED AND NOT USED" in log
    assert "is missing" in log
    assert bucket.names() == ["10", "11"]
