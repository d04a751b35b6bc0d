"""The names that the cluster's DNS would know, as files of the form of /etc/hosts: every pod has its own.

A pod has a name where a headless Service has its subdomain's, from the moment it has an address until it
ends. Services are 127.0.0.1 too: behind it are the ports on which the pods listen, not those of the Service.
"""

import os
from pathlib import Path
from threading import Lock

from api import Object
from environment import ADDRESS


class Names:
    """All names of a cluster; thread-safe."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.pods: dict[str, tuple[str, str, str]] = {}
        """By uid: namespace, hostname, subdomain."""
        self.services: set[tuple[str, str]] = set()
        self.files: dict[Path, tuple[str, str]] = {}
        """Namespace and own hostname of the pod whose file it is."""

    def see_pod(self, kind: str, pod: Object) -> None:
        """Take in a change of a pod."""
        spec, status = pod["spec"], pod.get("status", {})
        lives = kind != "DELETED" and status.get("podIP") and status.get("phase") not in ("Succeeded", "Failed")
        with self.lock:
            before = dict(self.pods)
            self.pods.pop(pod["metadata"]["uid"], None)
            if lives and "subdomain" in spec:
                named = pod["metadata"]["namespace"], hostname(pod), spec["subdomain"]
                self.pods[pod["metadata"]["uid"]] = named
            if before != self.pods:
                self._write()

    def see_service(self, kind: str, service: Object) -> None:
        """Take in a change of a Service."""
        with self.lock:
            change = self.services.discard if kind == "DELETED" else self.services.add
            change((service["metadata"]["namespace"], service["metadata"]["name"]))
            self._write()

    def open(self, path: Path, pod: Object) -> None:
        """Keep a file with what a pod may ask for, until `close`."""
        with self.lock:
            path.touch()
            self.files[path] = pod["metadata"]["namespace"], hostname(pod)
            self._write()

    def close(self, path: Path) -> None:
        """Change a file no more."""
        with self.lock:
            self.files.pop(path, None)

    def of(self, namespace: str) -> list[str]:
        """All names that a pod of a namespace may use."""
        names = [f"{service}.{home}" for home, service in self.services]
        names += [f"{host}.{sub}.{home}" for home, host, sub in self.pods.values() if (home, sub) in self.services]
        short = [name.removesuffix(f".{namespace}") for name in names if name.endswith(f".{namespace}")]
        return short + [name + suffix for name in names for suffix in ("", ".svc", ".svc.cluster.local")]

    def _write(self) -> None:
        for path, (namespace, own) in self.files.items():
            lines = [f"{ADDRESS} {name}\n" for name in ("localhost", own, *sorted(self.of(namespace)))]
            content = "".join(lines).encode()
            # The file is mounted, so it must stay the same one; a reader never finds it empty.
            file = os.open(path, os.O_WRONLY)
            os.pwrite(file, content, 0)
            os.ftruncate(file, len(content))
            os.close(file)


def hostname(pod: Object) -> str:
    """The name of the pod's machine as it sees it."""
    return str(pod["spec"].get("hostname") or pod["metadata"]["name"][:63])
