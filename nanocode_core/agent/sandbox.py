"""Runs commands that a model wrote. What each layer gives, and where:

- everywhere: a session of its own, killed as a whole when the time is up; an environment made anew
  (nothing of ours, so no secrets); limits per process on CPU time, address space, file size and open
  files; a cap on the output; an end together with this process, kill -9 included.
- Linux that grants namespaces (as root, or unprivileged user namespaces): no network at all; a PID
  namespace, so that nothing outlives the command or sees other processes; 64 processes at most.
- Linux that does not, on x86-64 or ARM64 (a container, mostly): no sockets but Unix ones, by a seccomp filter.
- Linux with Landlock (5.13 and later): files are written under `cwd` only, and read only there, in
  the system's program directories and in this Python.

`Sandbox.isolation` says which of these hold on this machine. Without namespaces a process that
detaches itself can outlive the command; without Landlock it has this user's files. A named Unix
socket of this user can be reached in any case, and memory is bounded per process.
"""

import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanocode_core.agent import zygote

OUTPUT_BYTES = 64 * 1024
MEMORY_BYTES = 4 * 2**30


@dataclass(frozen=True)
class Completed:
    """How a command ended: stdout and stderr together, 128 + signal for a killed one."""

    output: str
    exit_code: int
    timed_out: bool = False
    cut: bool = False


@dataclass(frozen=True)
class Isolation:
    """What the sandbox guarantees on this machine."""

    network: bool
    """Commands have no network."""
    processes: bool
    """Nothing outlives its command, and the number of processes is bounded."""
    files: bool
    """Files are written under the work directory only, and secrets in the home can't be read."""

    def __str__(self) -> str:
        """One line for people."""

        def word(held: bool, name: str) -> str:
            return name if held else f"{name} NOT isolated"

        return ", ".join(word(getattr(self, name), name) for name in ("network", "processes", "files"))


class Sandbox:
    """Starts commands confined, from a small helper process that is started at the first use.

    Safe to use from several threads. `close` ends the helper; so does the end of this process.

    Args:
        readable: further directories that commands may read.
        memory: address space of each process, in bytes.
        output: bytes of output kept.
    """

    def __init__(self, readable: Sequence[Path] = (), memory: int = MEMORY_BYTES, output: int = OUTPUT_BYTES) -> None:
        self._readable = [*_system_readable(), *(str(path.resolve()) for path in readable)]
        self._memory = memory
        self._output = output
        self._lock = threading.Lock()
        self._helper: _Helper | None = None

    @property
    def isolation(self) -> Isolation:
        """What holds here; found out once, when the helper starts."""
        found = self._connected().isolation
        spaces = bool(found["namespaces"])
        return Isolation(network=spaces or bool(found["seccomp"]), processes=spaces, files=bool(found["landlock"]))

    @property
    def scratch(self) -> Path:
        """A directory for short-lived work; the helper removes it when it ends, however that happens."""
        return Path(self._connected().isolation["scratch"])

    def run(self, command: str | Sequence[str], cwd: Path, seconds: float) -> Completed:
        """Run a shell command line, or a program with arguments, in the directory `cwd`."""
        # -p: the shell keeps an effective user that differs from the real one (see zygote.py).
        args = ["/bin/sh", "-pc", command] if isinstance(command, str) else list(command)
        return self._request(cwd, seconds, {"args": args})

    def python(self, code: str, cwd: Path, seconds: float) -> Completed:
        """Run Python source in a forked bare interpreter (no site-packages): a few milliseconds."""
        return self._request(cwd, seconds, {"python": code})

    def close(self) -> None:
        """End the helper process and everything it runs."""
        with self._lock:
            helper, self._helper = self._helper, None
        if helper is not None:
            helper.close()

    def __enter__(self) -> "Sandbox":
        """The sandbox itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close it."""
        self.close()

    def _connected(self) -> "_Helper":
        with self._lock:
            if self._helper is not None and not self._helper.alive():
                self._helper.close()
                shutil.rmtree(self._helper.isolation["scratch"], ignore_errors=True)
                self._helper = None
            if self._helper is None:
                self._helper = _Helper()
            return self._helper

    def _request(self, cwd: Path, seconds: float, what: dict[str, Any]) -> Completed:
        root = str(cwd.resolve())
        request = {
            **what,
            "cwd": root,
            "seconds": seconds,
            "environment": _environment(root),
            "readable": self._readable,
            "memory": self._memory,
            "output": self._output,
        }
        reply = self._connected().ask(json.dumps(request).encode() + b"\n", seconds + 30)
        header, newline, output = reply.partition(b"\n")
        if not newline:
            return Completed("the command ended its sandbox", 137)
        return Completed(output.decode("utf-8", errors="replace"), **json.loads(header))


class _Helper:
    """The zygote process and its control socket."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", zygote.__file__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={"PATH": os.defpath, "TMPDIR": tempfile.gettempdir()},
                start_new_session=True,
            )
        self._lock = threading.Lock()
        with self._control.makefile("rb") as stream:
            hello = stream.readline()
        if not hello:
            raise RuntimeError(f"the sandbox helper did not start (exit code {self._process.wait()})")
        self.isolation: dict[str, Any] = json.loads(hello)

    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, request: bytes, seconds: float) -> bytes:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.settimeout(seconds)
            try:
                with self._lock:
                    socket.send_fds(self._control, [b"."], [theirs.fileno()])
                theirs.close()
                ours.sendall(request)
                parts = []
                while part := ours.recv(65536):
                    parts.append(part)
            except (BrokenPipeError, ConnectionResetError):
                return b""
            return b"".join(parts)

    def close(self) -> None:
        self._control.close()
        self._process.wait()


@functools.cache
def _system_readable() -> tuple[str, ...]:
    """Where programs and their libraries lie, this Python's included."""
    python = [sys.prefix, sys.base_prefix, str(Path(sys.executable).resolve().parent)]
    return tuple(dict.fromkeys([*zygote.SYSTEM_READABLE, *(path for path in python if path != "/")]))


def _environment(root: str) -> dict[str, str]:
    """A clean environment: `python` is this Python, the home and the scratch space are `root`."""
    return {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"]),
        "HOME": root,
        "TMPDIR": root,
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONNOUSERSITE": "1",
    }
