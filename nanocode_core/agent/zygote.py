"""The sandbox's process: a tiny single-threaded Python that forks one confined child per command.

It runs as `python -I -S zygote.py FD` and imports the standard library only. The parent (`sandbox.py`)
sends the end of a socket pair over the control socket FD for every command. Each command becomes three
processes: a supervisor (reads the output, keeps the clock), an init (first process of a PID
namespace, where there is one) and the command itself. When the parent dies the sockets close and
everything here ends; when a supervisor dies the kernel kills its init, and with it the namespace.
"""

import ctypes
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from typing import Any

PROCESSES = 64
OPEN_FILES = 256
FILE_BYTES = 64 * 2**20

NEWNET, NEWPID, NEWUSER, NEWIPC = 0x40000000, 0x20000000, 0x10000000, 0x08000000
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_SECUREBITS, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 1, 24, 28, 38, 47
KEPT_AS_ROOT = (0, 1, 3)  # CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER: root's usual hand over the project's files
NO_SETUID_FIXUP = 1 << 2
ROOT_UIDS = 2_000_000_000  # real uids that no account has

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
TRUNCATE, IOCTL_DEVICE = 1 << 14, 1 << 15
FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEVICE
SYSTEM_READABLE = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt/lib", "/nix/store"),
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/alternatives", "/etc/passwd", "/etc/group", "/etc/localtime"),
    *("/etc/mime.types", "/dev/zero", "/dev/random", "/dev/urandom"),
)

PR_SET_SECCOMP, FILTER = 22, 2
LOAD, JUMP_EQUAL, JUMP_FROM, RETURN = 0x20, 0x15, 0x35, 0x06  # instructions of a seccomp filter
NUMBER, CONVENTION, FIRST_ARGUMENT = 0, 4, 16  # where it finds a system call's
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | 13  # EACCES
SOCKET = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}  # calling convention, number of socket(2)
X32, IO_URING_SETUP = 0x40000000, 425

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def landlock_version() -> int:
    """The kernel's Landlock ABI; 0 where there is none."""
    return max(0, _libc.syscall(444, None, ctypes.c_size_t(0), 1)) if sys.platform == "linux" else 0


def restrict_files(version: int, readable: list[str], writable: str) -> None:
    """Landlock: read and run `readable`, do anything under `writable`, write /dev/null, nothing else."""
    everything = (1 << (16 if version >= 5 else 15 if version >= 3 else 14 if version >= 2 else 13)) - 1
    network, scope = (3 if version >= 4 else 0), (3 if version >= 6 else 0)
    attributes = struct.pack("QQQ", everything, network, scope)[: 24 if version >= 6 else 16 if version >= 4 else 8]
    ruleset = _check(_libc.syscall(444, attributes, ctypes.c_size_t(len(attributes)), 0))
    rules = [(path, EXECUTE | READ_FILE | READ_DIR) for path in readable]
    for path, rights in [*rules, (writable, everything), ("/dev/null", READ_FILE | WRITE_FILE | TRUNCATE)]:
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue  # not on this machine
        if not os.path.isdir(path):
            rights &= FILE_RIGHTS
        rule = struct.pack("=Qi", rights & everything, descriptor)
        _check(_libc.syscall(445, ruleset, 1, rule, 0))
        os.close(descriptor)
    _check(_libc.syscall(446, ruleset, 0))
    os.close(ruleset)


def refuse_sockets() -> None:
    """Seccomp: no sockets but Unix ones, for this process and what it starts.

    Refused too are io_uring, which opens sockets of its own, and all calls by another convention (32 bits, x32).
    """
    convention, number = SOCKET[os.uname().machine]
    filter_calls(
        (LOAD, 0, 0, CONVENTION),
        (JUMP_EQUAL, 0, 6, convention),
        (LOAD, 0, 0, NUMBER),
        (JUMP_FROM, 4, 0, X32),
        (JUMP_EQUAL, 3, 0, IO_URING_SETUP),
        (JUMP_EQUAL, 0, 3, number),
        (LOAD, 0, 0, FIRST_ARGUMENT),
        (JUMP_EQUAL, 1, 0, socket.AF_UNIX),
        (RETURN, 0, 0, REFUSE),
        (RETURN, 0, 0, ALLOW),
    )


def filter_calls(*program: tuple[int, int, int, int]) -> None:
    """Install a seccomp filter: instructions of (code, how many to skip if true, if false, operand)."""
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    held = ctypes.create_string_buffer(code, len(code))
    _check(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _check(_libc.prctl(PR_SET_SECCOMP, FILTER, struct.pack("HP", len(program), ctypes.addressof(held)), 0, 0))


def can_refuse_sockets() -> bool:
    """Whether this kernel takes the filter. Tried in a throw-away child."""
    if sys.platform != "linux" or os.uname().machine not in SOCKET or struct.calcsize("P") != 8:
        return False
    child = os.fork()
    if child == 0:
        try:
            refuse_sockets()
            os._exit(0)
        except OSError:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def enter_namespaces(kind: str) -> None:
    """New network, PID and IPC namespaces; `kind` "user" makes a user namespace to be allowed to."""
    uid, gid = os.geteuid(), os.getegid()
    flags = NEWNET | NEWPID | NEWIPC | (NEWUSER if kind == "user" else 0)
    _check(_libc.unshare(flags))
    if kind == "user":
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)


def drop_capabilities(kind: str, supervisor: int) -> None:
    """Give up what root, or the owner of a user namespace, could do beyond its own files.

    Root's processes escape RLIMIT_NPROC, so a command that runs as root gets a real uid of its own
    beside the effective uid 0, with which it still owns what it makes. The pid of its supervisor makes
    that uid the only one of its kind.
    """
    kept = KEPT_AS_ROOT if kind == "root" else ()
    for capability in range(64):
        if capability not in kept and _libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            break
    mask = sum(1 << capability for capability in kept)
    if kind == "root":
        # Programs that give up the odd effective uid (shells do) keep their hand over the files.
        _check(_libc.prctl(PR_SET_SECUREBITS, NO_SETUID_FIXUP, 0, 0, 0))
        os.setresuid(ROOT_UIDS + supervisor, 0, 0)
    header = struct.pack("Ii", 0x20080522, 0)
    _check(_libc.capset(header, struct.pack("IIIIII", mask, mask, mask, 0, 0, 0)))
    for capability in kept:
        _check(_libc.prctl(PR_CAP_AMBIENT, 2, capability, 0, 0))


def probe() -> str:
    """Which namespaces this kernel grants: "root", "user" or "" (none). Tried in a throw-away child."""
    if sys.platform != "linux":
        return ""
    for kind in ("root", "user") if os.geteuid() == 0 else ("user",):
        child = os.fork()
        if child == 0:
            try:
                enter_namespaces(kind)
                init = os.fork()
                if init == 0:
                    drop_capabilities(kind, 0)
                    os._exit(0)
                os._exit(os.waitstatus_to_exitcode(os.waitpid(init, 0)[1]))
            except OSError:
                os._exit(1)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            return kind
    return ""


def user_processes() -> int:
    """Threads of this user now: what RLIMIT_NPROC counts where there is no user namespace."""
    count = 0
    for entry in os.scandir("/proc") if os.path.isdir("/proc/self") else ():
        try:
            if entry.name.isdigit() and entry.stat().st_uid == os.getuid():
                count += len(os.listdir(f"/proc/{entry.name}/task"))
        except OSError:
            continue  # ended meanwhile
    return count


def limit(request: dict[str, Any], kind: str) -> None:
    """Resource limits of each process of the command."""
    seconds = int(request["seconds"]) + 1
    processes = PROCESSES if kind else user_processes() + PROCESSES
    for name, value in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, request["memory"]),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(name)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(name, (value, value))
        except (OSError, ValueError):
            if sys.platform == "linux":
                raise  # macOS refuses RLIMIT_AS


def command(request: dict[str, Any], isolation: dict[str, Any], out: int) -> None:
    """In the command's own process: confine, then become the command. Never returns."""
    kind = isolation["namespaces"]
    os.setsid()
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (out, 1), (out, 2)):
        os.dup2(source, target)
    os.closerange(3, 64)
    os.umask(0o022)
    os.environ.clear()
    os.environ.update(request["environment"])
    for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.chdir(request["cwd"])
        limit(request, kind)
        if sys.platform == "linux":
            drop_capabilities(kind, request["supervisor"])
            _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            _check(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
            if isolation["landlock"]:
                restrict_files(isolation["landlock"], request["readable"], request["cwd"])
            if isolation["seccomp"] and not kind:
                refuse_sockets()
        if "python" in request:
            run_python(request["python"])
        os.execvpe(request["args"][0], request["args"], os.environ)
    except OSError as error:
        os.write(2, f"{request.get('args', ['python'])[0]}: {error.strerror}\n".encode())
    os._exit(127)


def run_python(code: str) -> None:
    """Run `code` in this forked interpreter: a fresh `__main__`, the work directory on the path."""
    main = type(sys)("__main__")
    main.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = main
    sys.path.insert(0, os.getcwd())
    sys.argv = [""]
    sys.dont_write_bytecode = True
    status = 0
    try:
        exec(compile(code, "<check>", "exec"), main.__dict__)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 1
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        status = 1
    os._exit(status & 255)


def init(request: dict[str, Any], isolation: dict[str, Any], out: int) -> None:
    """First process of the namespace: start the command, reap orphans, end with the command's status."""
    if sys.platform == "linux":
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    child = os.fork()
    if child == 0:
        command(request, isolation, out)
    os.close(out)
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def supervise(client: socket.socket, isolation: dict[str, Any]) -> None:
    """One command: read the request, start it, collect output until it ends or its time is up, reply."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if sys.platform == "linux":
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    with client.makefile("rb") as stream:
        request = {**json.loads(stream.readline()), "supervisor": os.getpid()}
    if isolation["namespaces"]:
        enter_namespaces(isolation["namespaces"])
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        client.detach()
        os.close(reader)
        init(request, isolation, writer)
    os.close(writer)
    deadline = time.monotonic() + request["seconds"]
    output, cut, status = bytearray(), False, None
    while True:
        left = deadline - time.monotonic()
        ready, _, _ = select.select([reader, client.fileno()], [], [], max(0.0, min(left, 0.05)))
        if client.fileno() in ready or (not ready and left <= 0):
            break
        if reader in ready:
            chunk = os.read(reader, 65536)
            if not chunk:
                break
            room = request["output"] - len(output)
            output += chunk[:room]
            cut = cut or len(chunk) > room
        elif status is not None:
            break  # the command has ended, but something it started still holds the pipe
        else:
            pid, ended = os.waitpid(child, os.WNOHANG)
            status = ended if pid else None
    timed_out = time.monotonic() >= deadline and status is None
    if timed_out or client.fileno() in ready or not isolation["namespaces"]:
        kill_family(child)
    if status is None:
        status = os.waitpid(child, 0)[1]
    code = os.waitstatus_to_exitcode(status)
    header = {"exit_code": 128 - code if code < 0 else code, "timed_out": timed_out, "cut": cut}
    client.sendall(json.dumps(header).encode() + b"\n" + bytes(output))


def kill_family(init_pid: int) -> None:
    """Kill init, with which the kernel kills its namespace; without one, all that descends from here.

    That second way misses a process that has detached itself from its parents before.
    """
    parents: dict[int, int] = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else ():
        try:
            with open(f"/proc/{name}/stat") as file:
                parents[int(name)] = int(file.read().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue  # not a process, or ended meanwhile
    family = {os.getpid(), init_pid}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    for pid in sorted(family - {os.getpid()}):
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            continue  # ended meanwhile


def make_scratch() -> str:
    """A directory of our own, in memory where there is such a place: small files come and go there."""
    for base in ("/dev/shm", os.environ.get("TMPDIR", "/tmp")):
        path = f"{base}/nanocode-{os.getpid()}-{os.urandom(4).hex()}"
        try:
            os.mkdir(path, 0o700)
        except OSError:
            continue  # not there, or not ours to write
        return path
    raise SystemExit("the sandbox finds no place for temporary files; set TMPDIR")


def main() -> None:
    """Serve until the control socket closes; then remove the scratch directory."""
    control = socket.socket(fileno=int(sys.argv[1]))
    scratch = make_scratch()
    isolation = {
        "namespaces": probe(),
        "landlock": landlock_version(),
        "seccomp": can_refuse_sockets(),
        "scratch": scratch,
    }
    control.sendall(json.dumps(isolation).encode() + b"\n")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not data:
            break
        if os.fork() == 0:
            control.close()
            try:
                supervise(socket.socket(fileno=descriptors[0]), isolation)
            finally:
                os._exit(0)
        os.close(descriptors[0])
    import shutil

    shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
