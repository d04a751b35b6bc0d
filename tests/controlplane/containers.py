"""A container as a process of this machine, in a world of its own where the machine allows it.

As root on Linux every container has its own mounts, processes, host name and IPC: the machine's root file
system under a layer that takes its writes and vanishes with it, its volumes, /etc/hosts, /dev and /dev/shm.
Its command is process 1, which a signal without a handler does not end: as in a real container.

Elsewhere (`isolate` False) it is a plain process: in its command, arguments and environment every path that
begins with a mountPath leads to the volume's directory instead, and the names of the hosts of its own JobSet
are 127.0.0.1. Other names of the cluster mean nothing there, and /dev/shm and /tmp are the machine's.

Ignored either way: image contents (PATH begins with this Python's programs), users and capabilities, probes,
CPU limits; a restart finds the writes of its forerunner gone. `tty`, `stdin` and lifecycle hooks are unknown.
"""

import contextlib
import os
import re
import select
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread

import psutil
from api import Api, Object, now
from environment import ADDRESS
from names import Names, hostname
from programs import TETHER
from volumes import Mount

HOME = "/home/pod"
PATH = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TERMINATION_MESSAGE = "/dev/termination-log"

START_ERROR = 128
"""Exit code of a container whose command could not be started, as containerd has it."""

OUTSIDE = """
OWN=$PATH PATH=/usr/sbin:/usr/bin:/sbin:/bin
trap 'exit 128' EXIT
set -e
mount -t tmpfs tmpfs {base}
cd {base}
mkdir lower upper work root
mount --bind / lower
mount -t overlay overlay -o lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work root
cd root
{nested}
mount -t proc proc proc
mount --rbind /sys sys
mount -t tmpfs dev dev
for each in null zero full random urandom tty; do : > dev/$each; mount --bind /dev/$each dev/$each; done
mkdir dev/pts dev/shm .mounts
mount --rbind /dev/pts dev/pts
ln -s /proc/self/fd dev/fd
ln -s fd/0 dev/stdin
ln -s fd/1 dev/stdout
ln -s fd/2 dev/stderr
mount -t tmpfs shm dev/shm
echo {hostname} > proc/sys/kernel/hostname
{staged}
exec chroot . /bin/sh -c {inside} sh "$OWN" "$@"
"""
INSIDE = """
OWN=$1 PATH=/usr/sbin:/usr/bin:/sbin:/bin
shift
trap 'exit 128' EXIT
set -e
mkdir -p {home}
{placed}
cd {directory}
PATH=$OWN
echo started >&0
exec "$@" < /dev/null
"""
"""Says through its standard input that nothing is left to do but the command."""

STAGE = """
if [ -d {source} ]; then mkdir .mounts/{number}; else : > .mounts/{number}; fi
mount --bind {source} .mounts/{number}
"""
PLACE = """
if [ -d /.mounts/{number} ]; then mkdir -p {target}; else mkdir -p {parent}; [ -e {target} ] || : > {target}; fi
mount --bind /.mounts/{number} {target}
"""


@dataclass
class Host:
    """What the containers of an agent share."""

    api: Api
    root: Path
    names: Names
    environment: dict[str, str]
    """What all images set."""
    isolate: bool
    broken: re.Pattern[str] | None = None
    """Images that cannot be pulled."""


@dataclass
class Container:
    """A container of a pod: its process, its log, its state as the API tells it."""

    spec: Object
    directory: Path
    state: Object = field(default_factory=lambda: {"waiting": {"reason": "ContainerCreating"}})
    last: Object = field(default_factory=dict)
    restarts: int = 0
    again: float = 0.0
    """When it starts again, by the monotonic clock, if it waits for that."""
    process: subprocess.Popen[bytes] | None = None
    killed: str = ""
    """Why the agent has killed it."""

    @property
    def name(self) -> str:
        return str(self.spec["name"])

    @property
    def log(self) -> Path:
        """What the latest run has printed: a line has the time, the stream and "F" before its text."""
        return self.directory / f"{self.restarts}.log"

    @property
    def code(self) -> int | None:
        """The exit code, if it has ended."""
        return self.state["terminated"]["exitCode"] if "terminated" in self.state else None

    @property
    def message(self) -> Path:
        """The file that appears as its termination message path."""
        return self.directory / "termination-log"

    def start(self, host: Host, pod: Object, command: list[str], env: dict[str, str], mounts: list[Mount]) -> None:
        """Start the process; the thread that calls this must live as long as it does."""
        base = self.directory / "world"
        base.mkdir(parents=True, exist_ok=True)
        self.message.write_text("")
        self.log.touch()
        target = self.spec.get("terminationMessagePath", TERMINATION_MESSAGE)
        mounts = [*mounts, Mount(self.message, target)]
        directory = self.spec.get("workingDir", "/")
        if host.isolate:
            mounts += hidden(mounts, env)
            script = enter(base, hostname(pod), directory, mounts)
            command = ["/bin/sh", "-c", script, "sh", *command]
            spaces = ["--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child=SIGKILL"]
            command = ["unshare", *spaces, "--propagation", "private", *command]
            directory = "/"
        else:
            table = {mount.target: str(mount.source) for mount in mounts} | {HOME: str(base)}
            subdomain = pod["spec"].get("subdomain", "")
            command = [plain(word, table, subdomain) for word in command]
            env = {name: plain(value, table, subdomain) for name, value in env.items()}
            directory = plain(directory, table, subdomain)
        self.killed = ""
        listen, tell = os.pipe()
        self.process = subprocess.Popen(
            [*TETHER, *command], env=env, cwd=directory, stdin=tell, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        os.close(tell)
        self._logger = Thread(target=self._keep_log, args=(self.process, self.log), daemon=True)
        self._logger.start()
        # A signal before the command has begun would be lost on the shell in its place.
        while host.isolate and self.process.poll() is None and not select.select([listen], [], [], 0.1)[0]:
            pass
        os.close(listen)
        self.state = {"running": {"startedAt": now()}}

    def poll(self) -> bool:
        """Whether it has ended since the last call."""
        if "running" not in self.state or self.process is None or self.process.poll() is None:
            return False
        self._signal_group(signal.SIGKILL)
        self._logger.join(timeout=5)
        code = self.process.returncode
        code = code if code >= 0 else 128 - code
        reason = self.killed or ("Completed" if code == 0 else "StartError" if code == START_ERROR else "Error")
        ended = {"exitCode": code, "reason": reason, "finishedAt": now(), **self.state["running"]}
        if message := self._last_words(code):
            ended["message"] = message
        self.state = {"terminated": ended}
        return True

    def terminate(self) -> None:
        """Ask the process to end."""
        if self.process is None:
            return
        inner = self._inner()
        if inner is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                inner.send_signal(signal.SIGTERM)

    def kill(self, why: str = "") -> None:
        """End the process and all that it has started."""
        if self.process is not None and self.process.poll() is None:
            self.killed = why
            self._signal_group(signal.SIGKILL)
            self.process.kill()

    def memory(self) -> int:
        """Resident bytes of the process and its children; memory that they share counts for each."""
        total = 0
        if self.process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                started = psutil.Process(self.process.pid)
                for process in [started, *started.children(recursive=True)]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        total += process.memory_info().rss
        return total

    def status(self) -> Object:
        """The ContainerStatus."""
        running = "running" in self.state
        found = {"name": self.name, "image": self.spec["image"], "imageID": "", "restartCount": self.restarts}
        return found | {"ready": running, "started": running, "state": self.state, "lastState": self.last}

    def _inner(self) -> psutil.Process | None:
        """The container's command, which in a world of its own is a child of `unshare`."""
        assert self.process is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.process.pid)
            if process.name() != "unshare":
                return process
            return next(iter(process.children()), None)
        return None

    def _signal_group(self, number: int) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def _keep_log(self, process: subprocess.Popen[bytes], path: Path) -> None:
        assert process.stdout is not None
        with path.open("wb", buffering=0) as log:
            for line in process.stdout:
                log.write(f"{now(fine=True)} stdout F ".encode() + line.rstrip(b"\n") + b"\n")

    def _last_words(self, code: int) -> str:
        """The termination message: what the container wrote for it, else the end of its log where that is asked for."""
        words = self.message.read_text(errors="replace")[:4096]
        fallback = self.spec.get("terminationMessagePolicy") == "FallbackToLogsOnError"
        if not words and code != 0 and (fallback or code == START_ERROR):
            lines = self.log.read_text(errors="replace").splitlines()[-80:]
            words = "\n".join(line.split(" ", 3)[3] for line in lines)[-2048:]
        return words


def hidden(mounts: list[Mount], env: dict[str, str]) -> list[Mount]:
    """What an image holds in our case, where a volume would hide it: a checkout may lie under /tmp."""
    places = [sys.prefix, *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    targets = [Path(mount.target) for mount in mounts]
    return [Mount(Path(place), place) for place in places if any(each in Path(place).parents for each in targets)]


def enter(base: Path, name: str, directory: str, mounts: list[Mount]) -> str:
    """The script that builds a container's world in the empty directory `base` and starts its arguments there."""
    quoted = shlex.quote
    nested = [mount.mountpoint for mount in psutil.disk_partitions(all=True)]
    nested = [path for path in nested if path != "/" and path.split("/")[1] not in ("proc", "sys", "dev")]
    staged, placed = [], []
    for number, mount in enumerate(mounts):
        target, parent = quoted(mount.target), quoted(os.path.dirname(mount.target))
        staged.append(STAGE.format(number=number, source=quoted(str(mount.source))))
        placed.append(PLACE.format(number=number, target=target, parent=parent))
        if mount.read_only:
            placed.append(f"mount -o remount,bind,ro {target}")
    inside = INSIDE.format(home=HOME, placed="\n".join(placed), directory=quoted(directory))
    return OUTSIDE.format(
        base=quoted(str(base)),
        hostname=quoted(name),
        # One that has gone meanwhile, such as another program's container, is none to miss.
        nested="\n".join(f"mount --rbind {quoted(path)} .{quoted(path)} || :" for path in nested),
        staged="\n".join(staged),
        inside=quoted(inside),
    )


def plain(text: str, mounts: dict[str, str], subdomain: str) -> str:
    """A text of a container as one outside can use it: volumes where they lie, hosts of a JobSet as addresses."""
    for target in sorted(mounts, key=len, reverse=True):
        text = re.sub(rf"(?<![\w./-]){re.escape(target)}(?=[/:;,'\"\s]|$)", mounts[target], text)
    if subdomain:
        host = rf"[a-z][a-z0-9-]*-\d+-\d+\.{re.escape(subdomain)}(\.[a-z0-9-]+(\.svc(\.cluster\.local)?)?)?"
        text = re.sub(rf"(?<![\w.-]){host}(?![\w.-])", ADDRESS, text)
    return text


def can_isolate(root: Path) -> bool:
    """Whether this machine lets the agent give containers a world of their own."""
    base = root / "trial"
    base.mkdir()
    spaces = ["--mount", "--uts", "--ipc", "--pid", "--fork", "--propagation", "private"]
    trial = ["unshare", *spaces, "/bin/sh", "-c", enter(base, "trial", "/", []), "sh", "true"]
    with contextlib.suppress(OSError), open(os.devnull, "w") as said:
        return subprocess.run(trial, stdin=said, capture_output=True, env={"PATH": PATH}).returncode == 0
    return False
