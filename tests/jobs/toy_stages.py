"""Small stages for the tests of the job machinery; the worker process imports them by name."""

import os
import signal
import subprocess
import sys
import time

from nanocode_core.errors import StorageError, UserError


def write(job):
    """Write the seed, and what the inputs hold."""
    parts = [str(job.config.seed), *((artifact.path / "value.txt").read_text() for artifact in job.inputs.values())]
    (job.out / "value.txt").write_text("+".join(parts))
    job.log("written")
    return {"length": len(parts)}


def count(job):
    """Count to forty in the work directory, slowly; a restart goes on."""
    saved = job.work / "count.txt"
    reached = int(saved.read_text()) if saved.exists() else 0
    job.rewind_metrics(reached)
    job.log(f"from {reached}")
    for step in range(reached + 1, 41):
        time.sleep(float(os.environ.get("TOY_PACE", "0.05")))
        job.metric(step=step, square=step * step)
        partial = job.work / "count.tmp"
        partial.write_text(str(step))
        os.replace(partial, saved)
        job.progress(step, 40, "steps")
    (job.out / "value.txt").write_text(str(step))
    return {"steps": 40}


def refuse(job):
    """Refuse the input."""
    raise UserError("corpus.sources: no file matches 'x'; give another glob")


def crash(job):
    """Fail with a bug."""
    return {"never": 1 // 0}


def die(job):
    """Be killed."""
    os.kill(os.getpid(), signal.SIGKILL)


def fill(job):
    """Fill the disk."""
    with (job.out / "large.bin").open("wb") as file:
        while True:
            file.write(b"x" * 2**20)
            file.flush()


def sleep_with_child(job):
    """Sleep next to a child process, as a stage with a server does."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    job.log(f"pids {os.getpid()} {child.pid}")
    time.sleep(60)


def lose_the_store(job):
    """Lose the store in the first start; for good, where the seed is 1."""
    lost = job.work / "lost"
    if lost.exists() and job.config.seed != 1:
        (job.out / "value.txt").write_text("found again")
        return {}
    lost.write_text("")
    raise StorageError("store gs://bucket: could not read x (503); see to the network", lasting=job.config.seed == 1)


def vanish(job):
    """End without a word, as an interpreter does that can't go on."""
    os._exit(1)


def swallow(job):
    """Take more memory than any machine of the tests lends."""
    taken = []
    while True:
        taken.append(bytearray(b"x") * 2**26)
        time.sleep(0.02)
