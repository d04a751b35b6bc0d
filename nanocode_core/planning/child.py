"""The process that has jax and, if it is installed, libtpu: `python -m nanocode_core.planning.child`.

It reads requests and writes answers, one JSON object a line (see `protocol`), until its input ends:
then the parent is done or gone, and whatever is still being compiled is given up.
The parent sets the environment under which libtpu compiles without a TPU (see `compiler`). Whatever
libraries print goes to stderr: the answers have the original stdout for themselves.
"""

import json
import os
import queue
import sys
import threading
import time
from pathlib import Path
from typing import Any

from nanocode_core.config import Config
from nanocode_core.errors import UserError
from nanocode_core.planning.accelerators import find_accelerator
from nanocode_core.planning.cache import Cache
from nanocode_core.planning.protocol import Ask, Mesh


def main() -> None:
    """Answer until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(lines,), daemon=True).start()
    while True:
        request = json.loads(lines.get())
        try:
            answer: dict[str, Any] = {"answer": answer_to(request)}
        except UserError as error:
            answer = {"user_error": str(error)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _read(lines: "queue.SimpleQueue[str]") -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)  # a compilation can't be interrupted


def answer_to(request: dict[str, Any]) -> dict[str, Any]:
    """The answer to one request, as plain values."""
    from nanocode_core.planning import step

    config, accelerator = Config.model_validate(request["config"]), find_accelerator(request["accelerator"])
    if request["operation"] == "facts":
        return step.facts(config, accelerator)
    mesh = Mesh(**request["mesh"])
    if request["operation"] == "state":
        return step.state(config, accelerator, mesh)
    return compile_step(
        Ask(config, accelerator, mesh, request["rows"], request["micro"]), Cache(Path(request["cache"]))
    )


def compile_step(ask: Ask, cache: Cache) -> dict[str, Any]:
    """Compile a training step, unless the same lowered program was compiled before."""
    from nanocode_core.planning import step

    lowered, state = step.lower(ask)
    program = step.program_hash(lowered, ask.accelerator)
    kept = cache.program(program)
    if kept is not None:
        return {**kept, "cached": True}
    start, used = time.monotonic(), time.process_time()
    outcome = step.compile_lowered(lowered, ask.accelerator) | {"program": program, "state": state}
    outcome["compile_seconds"] = round(time.monotonic() - start, 1)
    outcome["compile_cpu_seconds"] = round(time.process_time() - used, 1)
    cache.keep_program(program, outcome)
    return {**outcome, "cached": False}


if __name__ == "__main__":
    main()
