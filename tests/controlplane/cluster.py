"""A Kubernetes cluster of real parts on loopback: etcd, API server, controllers, scheduler, JobSet.

Everything a manifest or a launcher meets on GKE is the real thing but the machines: those come from agent.py.
Differences from GKE that a test can see: DEFAULT_TOLERATION instead of 300 s, no cloud controller, no webhooks
of Google's, requests sent with `client` and `apply` are those of an administrator.
"""

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from ssl import create_default_context
from typing import TYPE_CHECKING, Any, Self

import jobset
import yaml
from agent import Agent
from api import Api, Object, Refused
from certs import Authority
from programs import TETHER, find_program

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

START_SECONDS = 180
"""How long a part may take to start, on a machine that is busy with other things."""

DEFAULT_TOLERATION = 5
"""Seconds that pods stay on a node which is not ready, or does not answer any more."""

CONTROLLERS = """
job cronjob ttl-after-finished pod-garbage-collector garbage-collector namespace node-lifecycle taint-eviction
serviceaccount serviceaccount-token root-ca-certificate-publisher clusterrole-aggregation endpoints
endpointslice disruption deployment replicaset statefulset resourcequota
"""


class Cluster:
    """A running cluster; leaving the context ends it. Start it in a thread that lives as long as it does."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="nanocode-cluster-"))
        self.kubeconfig = self.directory / "kubeconfig"
        self.authority = Authority(self.directory)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._agents: list[Agent] = []

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        for name in ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "jobset"):
            find_program(name)  # builds what is missing, before anything runs
        storage, peer, port, *rest = free_ports(7)
        self._start_etcd(storage, peer)
        self._start_server(storage, port)
        self._write_kubeconfig(self.kubeconfig, *self.authority.issue("admin", "admin", "system:masters"))
        self._wait("kube-apiserver", f"{self.address}/readyz")
        self.api = Api(self.kubeconfig)
        self.apply(jobset.definition())
        self._start_controllers(*rest[:2])
        webhook, health = rest[2:]
        options = jobset.configure(self.directory, self.authority, webhook, health)
        self._run("jobset", *options, f"--kubeconfig={self.kubeconfig}")
        self._wait("jobset", f"http://127.0.0.1:{health}/readyz")
        self.apply(jobset.webhooks(webhook, self.authority.bundle))
        for name in ("kube-controller-manager", "kube-scheduler"):
            port = rest[0] if name == "kube-controller-manager" else rest[1]
            self._wait(name, f"https://127.0.0.1:{port}/healthz")
        # The server learns of webhooks and accounts through watches of its own.
        wait_for(lambda: jobset.works(self.api), "JobSet's webhooks", START_SECONDS)
        wait_for(lambda: self._account("default", "default"), "the default service account", START_SECONDS)

    def _start_etcd(self, port: int, peer: int) -> None:
        urls = [f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer}"]
        self._run(
            "etcd",
            f"--data-dir={self.directory / 'etcd'}",
            "--unsafe-no-fsync",
            "--log-level=error",
            f"--listen-client-urls={urls[0]}",
            f"--advertise-client-urls={urls[0]}",
            f"--listen-peer-urls={urls[1]}",
            f"--initial-advertise-peer-urls={urls[1]}",
            f"--initial-cluster=default={urls[1]}",
        )

    def _start_server(self, storage: int, port: int) -> None:
        self.address = f"https://127.0.0.1:{port}"
        serving, kubelet = self.authority.issue("server"), self.authority.issue("kubelet-client", "kube-apiserver")
        accounts = self.authority.issue("accounts")
        self._run(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{storage}",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            f"--tls-cert-file={serving[0]}",
            f"--tls-private-key-file={serving[1]}",
            f"--client-ca-file={self.authority.certificate}",
            "--authorization-mode=RBAC",
            "--anonymous-auth=true",  # of /readyz; RBAC lets it see little else
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={accounts[0]}",
            f"--service-account-signing-key-file={accounts[1]}",
            f"--kubelet-certificate-authority={self.authority.certificate}",
            f"--kubelet-client-certificate={kubelet[0]}",
            f"--kubelet-client-key={kubelet[1]}",
            "--kubelet-preferred-address-types=InternalIP",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--endpoint-reconciler-type=none",  # which would refuse loopback
            "--allow-privileged=true",
            f"--default-not-ready-toleration-seconds={DEFAULT_TOLERATION}",
            f"--default-unreachable-toleration-seconds={DEFAULT_TOLERATION}",
        )

    def _start_controllers(self, manager: int, scheduler: int) -> None:
        shared = ["--leader-elect=false", "--bind-address=127.0.0.1"]
        shared += [f"--{kind}kubeconfig={self.kubeconfig}" for kind in ("", "authentication-", "authorization-")]
        shared += [f"--cert-dir={self.directory}"]
        self._run(
            "kube-controller-manager",
            *shared,
            f"--secure-port={manager}",
            f"--tls-cert-file={self.directory / 'server.crt'}",
            f"--tls-private-key-file={self.directory / 'server.key'}",
            f"--controllers={','.join(f'{name}-controller' for name in CONTROLLERS.split())}",
            f"--service-account-private-key-file={self.directory / 'accounts.key'}",
            f"--root-ca-file={self.authority.certificate}",
            "--node-monitor-period=1s",
            "--node-monitor-grace-period=20s",  # ten renewals of an agent's lease
            "--node-eviction-rate=10",
        )
        config = {
            "apiVersion": "kubescheduler.config.k8s.io/v1",
            "kind": "KubeSchedulerConfiguration",
            "leaderElection": {"leaderElect": False},
            "clientConnection": {"kubeconfig": str(self.kubeconfig)},
            "podInitialBackoffSeconds": 1,
            "podMaxBackoffSeconds": 2,
        }
        path = self.directory / "scheduler.yaml"
        path.write_text(yaml.safe_dump(config))
        own = [option for option in shared if not option.startswith(("--kubeconfig", "--leader-elect"))]
        self._run(
            "kube-scheduler",
            *own,
            f"--config={path}",
            f"--secure-port={scheduler}",
            f"--tls-cert-file={self.directory / 'server.crt'}",
            f"--tls-private-key-file={self.directory / 'server.key'}",
        )

    @property
    def client(self) -> "ApiClient":
        """A new client of the administrator."""
        from kubernetes import config

        return config.new_client_from_config(str(self.kubeconfig))

    def token(self, namespace: str, account: str) -> "ApiClient":
        """A new client with the rights of a service account, by a token of an hour."""
        from kubernetes.client import ApiClient, Configuration

        wait_for(lambda: self._account(namespace, account), f"the service account {account}", 30)
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        made = self.api.post(path, {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}})
        options = Configuration(host=self.address)
        options.ssl_ca_cert = str(self.authority.certificate)
        options.api_key = {"authorization": f"Bearer {made['status']['token']}"}
        return ApiClient(options)

    def apply(self, source: Path | str | list[Object], dry_run: bool = False) -> list[Object]:
        """Server-side apply of the documents of a file, a YAML text or a list; what the server made of them.

        Fields that the server does not know are an error. Refused carries the server's message.
        """
        if isinstance(source, Path):
            source = source.read_text()
        documents = list(yaml.safe_load_all(source)) if isinstance(source, str) else source
        return [self.api.apply(document, dry_run=dry_run) for document in documents if document]

    def namespace(self, name: str) -> str:
        """Create a namespace whose default service account pods can use."""
        self.api.post("/api/v1/namespaces", {"metadata": {"name": name}})
        wait_for(lambda: self._account(name, "default"), f"the service account of {name}", 30)
        return name

    def agent(self, **options: Any) -> Agent:
        """Start a node agent of this cluster (see Agent); it ends with the cluster, if not before."""
        agent = Agent(self.kubeconfig, self.authority, **options)
        self._agents.append(agent)
        return agent

    def log(self, program: str) -> str:
        """What a part has printed: "kube-apiserver", "jobset" ..."""
        return (self.directory / f"{program}.log").read_text(errors="replace")

    def close(self) -> None:
        """End the agents with their pods, then all parts; removes the data."""
        for agent in self._agents:
            agent.kill()
        # Nothing is kept, so nothing needs to be said goodbye.
        for process in reversed(self.processes.values()):
            process.kill()
        for process in self.processes.values():
            process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _account(self, namespace: str, name: str) -> bool:
        with contextlib.suppress(Refused):
            return bool(self.api.get(f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}"))
        return False

    def _run(self, name: str, *options: str) -> None:
        with (self.directory / f"{name}.log").open("wb") as log:
            command = [*TETHER, find_program(name), *options]
            null = subprocess.DEVNULL
            self.processes[name] = subprocess.Popen(command, stdin=null, stdout=log, stderr=subprocess.STDOUT)

    def _wait(self, name: str, url: str) -> None:
        """Wait until a part says that it works."""
        context = create_default_context(cafile=str(self.authority.certificate)) if url.startswith("https") else None

        def ready() -> bool:
            for part, process in self.processes.items():
                if process.poll() is not None:
                    raise RuntimeError(f"{part} ended:\n{self.log(part)[-3000:]}")
            try:
                with urllib.request.urlopen(url, timeout=5, context=context) as answer:
                    return answer.status == 200
            except OSError:
                return False

        wait_for(ready, name, START_SECONDS)

    def _write_kubeconfig(self, path: Path, certificate: Path, key: Path) -> None:
        server = {"server": self.address, "certificate-authority": str(self.authority.certificate)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": server}],
            "users": [{"name": "admin", "user": {"client-certificate": str(certificate), "client-key": str(key)}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
            "current-context": "test",
        }
        path.write_text(yaml.safe_dump(config))


def wait_for(condition: Callable[[], Any], what: str, seconds: float) -> Any:
    """The first true value of a condition, asked ten times a second; TimeoutError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds} s for {what}")
        time.sleep(0.1)
    return found


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
