"""A node agent: nodes whose pods are processes of this machine, and the faults that a test can order.

It is a process of its own (kubelet.py), so that a test may kill it as a machine dies. What a container is
given and what it lacks: containers.py, volumes.py, names.py. Unknown to it are sidecars, probes, ephemeral
containers, exec and port-forward, persistent volumes; two pods share the ports of 127.0.0.1.
"""

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from threading import Lock
from typing import Any, Self
from uuid import uuid4

import psutil
from certs import Authority
from programs import TETHER


class Agent:
    """A running agent. Start it in a thread that lives as long as it does; leaving the context ends it.

    `environment` is what every image sets: an address of a test's own server, for instance. With `isolate`
    False, or where the machine allows no more, containers are plain processes (see containers.py).
    """

    def __init__(
        self, kubeconfig: Path, authority: Authority, environment: dict[str, str] | None = None, isolate: bool = True
    ) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="nanocode-agent-"))
        certificate, key = authority.issue(f"kubelet-{uuid4().hex[:8]}", "system:node:agent", "system:nodes")
        options = {
            "kubeconfig": str(kubeconfig),
            "directory": str(self.directory),
            "certificate": str(certificate),
            "key": str(key),
            "authority": str(authority.certificate),
            "environment": environment or {},
            "isolate": isolate,
        }
        program = Path(__file__).with_name("kubelet.py")
        # kubelet.py imports programs.py.
        paths = {"PYTHONPATH": str(program.parents[1] / "servers"), "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
        self.lock = Lock()
        self.process = subprocess.Popen(
            [*TETHER, sys.executable, str(program), json.dumps(options)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=paths,
        )  # fmt: skip
        self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def isolated(self) -> bool:
        """Whether containers have mounts, processes and names of their own on this machine."""
        return bool(self._order("isolated"))

    def add_node(
        self,
        name: str,
        labels: dict[str, str] | None = None,
        taints: list[dict[str, str]] | None = None,
        capacity: dict[str, str] | None = None,
    ) -> str:
        """Register a ready node; `capacity` is added to plenty of CPU and memory: {"google.com/tpu": "4"}."""
        self._order("add_node", name=name, labels=labels or {}, taints=taints or [], capacity=capacity or {})
        return name

    def add_pool(self, pool: str, nodes: int = 1, **options: Any) -> list[str]:
        """Register the nodes of a GKE node pool with its labels and taints (options: nodes.pool); their names."""
        from nodes import pool as make

        made = make(pool, nodes, **options)
        return [self.add_node(node.name, node.labels, node.taints, node.capacity) for node in made]

    def preempt(self, *nodes: str, grace: float = 15.0, wait: bool = True) -> None:
        """Preempt nodes as GKE does with spot machines: SIGTERM to their pods, after `grace` seconds SIGKILL.

        The pods are Failed then, with the condition DisruptionTarget, and the Nodes go away. Returns after
        that, or at once where `wait` is False.
        """
        self._order("preempt", names=list(nodes), grace=grace, wait=wait)

    def power_off(self, node: str) -> None:
        """End a node without a word: the API believes its pods to run until the node's lease has expired (20 s)."""
        self._order("power_off", name=node)

    def remove_node(self, node: str) -> None:
        """Take a node and its Node object away at once; its pods in the API are left to the garbage collector."""
        self._order("remove_node", name=node)

    def image_pull_error(self, pattern: str | None) -> None:
        """Let pulls of images that match a regular expression fail from now on; None: no more."""
        self._order("image_pull_error", pattern=pattern)

    def close(self) -> None:
        """End all pods and take them and the nodes out of the API; then end the agent."""
        if self.process.poll() is None:
            with contextlib.suppress(RuntimeError, OSError):
                self._order("close")
        self.kill()

    def kill(self) -> None:
        """End the agent and its pods at once, as if all its machines lost power."""
        started = []
        with contextlib.suppress(psutil.NoSuchProcess):
            started = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait()
        # They die by themselves but for the children of plain processes, and not all of them at once.
        for process in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(started, timeout=10)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _order(self, name: str, /, **arguments: Any) -> Any:
        with self.lock:
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps([name, arguments]) + "\n")
            self.process.stdin.flush()
            return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the agent ended with code {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["answer"]
