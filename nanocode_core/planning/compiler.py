"""The parent's side of ahead-of-time compilation: a child process that compiles, and what it said.

libtpu takes hold of the process that loads it, wants its environment set before jax is imported, and
can end the process it runs in. So it lives in a child, which is started at the first request, serves
many, and is started anew after a crash. Nothing here imports jax.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from nanocode_core.config import PROJECT, Config
from nanocode_core.errors import UserError
from nanocode_core.planning.accelerators import Accelerator
from nanocode_core.planning.cache import Cache
from nanocode_core.planning.protocol import (
    Ask,
    Facts,
    Mesh,
    Outcome,
    State,
    compiler_is_here,
    request_key,
)

# TPU_SKIP_MDS_QUERY and the two names keep libtpu from looking for the machine's TPU; without
# ALLOW_MULTIPLE_LIBTPU_LOAD a second process would end at a lock file.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_LOG_DIR": "disabled",
}
_STDERR_TAIL = 2_000


class CompilerCrash(Exception):
    """The child ended without an answer; the message is the end of what it wrote to stderr."""


def how_to_get_it() -> str:
    """One line: how to install what compiles for TPUs."""
    return "libtpu is not installed: `make tpu` gets it (the extra `tpu`; no TPU needed)"


class Compiler:
    """Asks the child; a context manager, at whose end the child is gone.

    Args:
        directory: for the kept answers and the child's stderr.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._cache = Cache(directory)
        self._child: subprocess.Popen[str] | None = None
        self._serves: str | None = None
        self._stderr: IO[str] | None = None

    def __enter__(self) -> "Compiler":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def facts(self, config: Config, accelerator: Accelerator) -> Facts:
        """Counts of a config, and what training chooses there; needs no libtpu."""
        return Facts(**self._counted({"operation": "facts", "accelerator": accelerator.name}, config))

    def state(self, config: Config, accelerator: Accelerator, mesh: Mesh) -> State:
        """Bytes of the training state on one device under a mesh; needs no libtpu."""
        request = {"operation": "state", "accelerator": accelerator.name, "mesh": asdict(mesh)}
        return State(**self._counted(request, config))

    def known(self, ask: Ask) -> Outcome | None:
        """The outcome of a request that was answered before, None otherwise. Starts nothing."""
        kept = self._cache.request(ask.key())
        return Outcome(**{**kept, "cached": True}) if kept else None

    def compile(self, ask: Ask) -> Outcome:
        """Compile a training step for a TPU slice, or take the kept answer.

        Raises:
            CompilerCrash: the compiler took its process down.
            UserError: libtpu isn't installed, or the config doesn't suit the slice.
        """
        known = self.known(ask)
        if known is not None:
            return known
        if not compiler_is_here():
            raise UserError(how_to_get_it())
        request = {"operation": "compile", "cache": str(self._directory), **ask.to_json()}
        outcome = Outcome(**self._request(ask.accelerator, request))
        self._cache.keep_request(ask.key(), outcome.program)
        return outcome

    def _counted(self, request: dict[str, Any], config: Config) -> dict[str, Any]:
        """The answer to a request that needs no libtpu, kept."""
        key = request_key(request, config)
        kept = self._cache.counts(key)
        if kept is None:
            kept = self._request(None, {**request, "config": config.model_dump(mode="json")})
            self._cache.keep_counts(key, kept)
        return kept

    def _request(self, accelerator: Accelerator | None, request: Mapping[str, Any]) -> Any:
        child = self._running(accelerator)
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(json.dumps(request) + "\n")
            child.stdin.flush()
            line = child.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise CompilerCrash(self._last_words())
        answer = json.loads(line)
        if "user_error" in answer:
            raise UserError(answer["user_error"])
        if "error" in answer:
            raise CompilerCrash(answer["error"])
        return answer["answer"]

    def _running(self, accelerator: Accelerator | None) -> subprocess.Popen[str]:
        """The child; another one where libtpu must take itself for another machine."""
        name = accelerator.name if accelerator else self._serves
        if self._child is not None and self._child.poll() is None and name == self._serves:
            return self._child
        self._stop()
        self._directory.mkdir(parents=True, exist_ok=True)
        self._stderr = (self._directory / f"child-{os.getpid()}.log").open("w+", encoding="utf-8", errors="replace")
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TPU_")} | _ENVIRONMENT
        if name:
            environment["TPU_ACCELERATOR_TYPE"] = name
        self._child = subprocess.Popen(
            [sys.executable, "-m", "nanocode_core.planning.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            cwd=PROJECT,
            env=environment,
            text=True,
            encoding="utf-8",
        )
        self._serves = name
        return self._child

    def _last_words(self) -> str:
        assert self._child is not None
        assert self._stderr is not None
        code = self._child.wait()
        self._stderr.seek(0)
        lines = self._stderr.read()[-_STDERR_TAIL:].strip().splitlines()
        return f"the compiling process ended with {code}" + (f": {lines[-1]}" if lines else "")

    def _stop(self) -> None:
        if self._child is not None:
            for pipe in (self._child.stdin, self._child.stdout):
                if pipe is not None:
                    pipe.close()
            self._child.kill()
            self._child.wait()
            self._child = None
        if self._stderr is not None:
            Path(self._stderr.name).unlink(missing_ok=True)
            self._stderr.close()
            self._stderr = None
