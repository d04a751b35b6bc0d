"""End with the parent: a process started with a pipe as its stdin ends when that pipe closes.

The kernel closes the pipe however the parent dies, kill -9 included, so no child outlives the run it
belongs to. `python -m nanocode_core.jobs.tether MODULE ARGS...` runs a module this way.
"""

import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

VARIABLE = "NANOCODE_TETHER"


def popen(args: Sequence[str], env: Mapping[str, str] | None = None, **options: Any) -> "subprocess.Popen[str]":
    """Start a Python program tethered to this process, in a session and process group of its own.

    `args` are the interpreter's arguments, such as ["-m", "some.module"]; that program has to call
    `hold` (the worker does) or be started through this module's command line.
    """
    variables = {**(os.environ if env is None else env), VARIABLE: "1"}
    return subprocess.Popen(
        [sys.executable, *args], stdin=subprocess.PIPE, env=variables, start_new_session=True, text=True, **options
    )


def hold() -> None:
    """From here on, kill this process group as soon as stdin closes (only when started by `popen`)."""
    if os.environ.pop(VARIABLE, None) != "1":
        return
    pipe = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    threading.Thread(target=_wait, args=(pipe,), name="tether", daemon=True).start()


def _wait(pipe: int) -> None:
    while os.read(pipe, 1024):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    hold()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
