"""Small stages under the names of the real ones; the worker process imports them by name."""

import os
import subprocess
import sys
import time

from nanocode_core.errors import UserError
from nanocode_core.jobs.stage import Stage


def write(job):
    """Write the seed, and what the inputs hold."""
    parts = [str(job.config.seed), *((artifact.path / "value.txt").read_text() for artifact in job.inputs.values())]
    (job.out / "value.txt").write_text("+".join(parts))
    for done in (1, 2):
        job.progress(done, 2, "parts")
    return {"parts": len(parts), "share": 0.123456}


def page(job):
    """A report."""
    (job.out / "report.html").write_text("<p>done</p>")
    (job.out / "report.md").write_text("done")
    return {"pages": 1}


def refuse(job):
    """Refuse the input."""
    raise UserError("corpus.sources: no file matches 'x'; give another glob")


def crash(job):
    """Fail with a bug."""
    return {"never": 1 // 0}


def once_preempted(job):
    """Be told to go away at the first start."""
    mark = job.work / "started"
    if not mark.exists():
        mark.write_text("")
        raise KeyboardInterrupt
    return write(job)


def pause(job):
    """Take a few seconds."""
    job.log("pausing")
    time.sleep(4)
    return write(job)


def slow(job):
    """Sleep next to a child process, as a stage with a server does."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
    job.log(f"pids {os.getpid()} {child.pid}")
    time.sleep(120)


def toys(**functions):
    """A pipeline corpus, synthetic -> dpo -> eval -> report; `functions` replaces build functions."""
    inputs = {
        "corpus": (),
        "synthetic": (),
        "dpo": ("corpus", "synthetic"),
        "eval": ("dpo", "synthetic"),
        "report": ("corpus", "synthetic", "dpo", "eval"),
    }
    identity = {"corpus": ("seed",), "synthetic": ("synthetic.rollouts",), "dpo": ("dpo.beta",)}
    return tuple(
        Stage(
            name=name,
            version=1,
            build=f"flow_toys:{functions.get(name, 'page' if name == 'report' else 'write')}",
            inputs=inputs[name],
            identity=identity.get(name, ()),
        )
        for name in inputs
    )
