import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from nanocode_core.agent.sandbox import Sandbox


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox() as box:
        yield box


def _soon(condition: Callable[[], bool], seconds: float = 20) -> bool:
    """Whether the condition comes true: what another process does at its end takes a moment."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def _gone(marker: str, seconds: float = 20) -> bool:
    """No process has the marker in its command line."""

    def none() -> bool:
        return not any(marker in " ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"]))

    return _soon(none, seconds)


def test_runs_in_its_directory_with_this_python(sandbox, tmp_path):
    done = sandbox.run("python -c 'import sys; print(sys.version_info[:2])' > out.txt; cat out.txt", tmp_path, 20)
    assert (done.output.strip(), done.exit_code) == (str(sys.version_info[:2]), 0)
    assert (tmp_path / "out.txt").stat().st_uid == os.geteuid()
    assert sandbox.run(["/bin/echo", "a  b"], tmp_path, 5).output == "a  b\n"


def test_exit_codes(sandbox, tmp_path):
    assert sandbox.run("exit 7", tmp_path, 5).exit_code == 7
    assert sandbox.run("kill -9 $$", tmp_path, 5).exit_code == 137
    assert sandbox.run(["/no/such/program"], tmp_path, 5).exit_code == 127


def test_python_runs_in_a_fresh_interpreter(sandbox, tmp_path):
    (tmp_path / "mine.py").write_text("value = 3\n")
    assert sandbox.python("import mine; leak = 1; print(mine.value, __name__)", tmp_path, 5).output == "3 __main__\n"
    done = sandbox.python("print('leak' in globals()); raise SystemExit(4)", tmp_path, 5)
    assert (done.output, done.exit_code) == ("False\n", 4)
    assert "ZeroDivisionError" in sandbox.python("1 / 0", tmp_path, 5).output


def test_no_secrets_in_the_environment(sandbox, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with Sandbox() as fresh:
        assert "sk-secret" not in fresh.run("env; cat /proc/*/environ", tmp_path, 10).output
    assert f"HOME={tmp_path.resolve()}" in sandbox.run("env", tmp_path, 5).output


def test_time_out_kills_grandchildren_too(sandbox, tmp_path):
    if not sandbox.isolation.processes:
        pytest.skip("no namespaces here")
    start = time.monotonic()
    done = sandbox.run("(setsid sleep 4711; touch late) & sleep 4711", tmp_path, 0.5)
    assert done.timed_out
    assert time.monotonic() - start < 5
    assert _gone("sleep 4711")
    assert not (tmp_path / "late").exists()


def test_nothing_outlives_the_command(sandbox, tmp_path):
    if not sandbox.isolation.processes:
        pytest.skip("no namespaces here")
    start = time.monotonic()
    assert sandbox.run("setsid sleep 4712 & echo started", tmp_path, 30).output == "started\n"
    assert time.monotonic() - start < 5
    assert _gone("sleep 4712")


def test_a_fork_bomb_is_bounded(sandbox, tmp_path):
    if not sandbox.isolation.processes:
        pytest.skip("no namespaces here")
    code = """
        import os, time
        made = 0
        try:
            for _ in range(1000):
                if os.fork() == 0:
                    time.sleep(30)
                made += 1
        except OSError:
            print("refused after", made)
    """
    done = sandbox.python(textwrap.dedent(code), tmp_path, 10)
    assert done.output.startswith("refused after ")
    assert int(done.output.split()[-1]) <= 64
    before = len(psutil.pids())
    sandbox.run("bomb() { bomb | bomb & }; bomb; sleep 10", tmp_path, 1.0)
    assert _soon(lambda: len(psutil.pids()) < before + 50)


def test_no_network(sandbox, tmp_path):
    if not sandbox.isolation.network:
        pytest.skip("no namespaces here")
    listen = (
        "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); s.accept()"
    )
    with subprocess.Popen([sys.executable, "-c", listen], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        code = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)"
        try:
            assert "Error" in sandbox.python(code, tmp_path, 10).output
            exec(code)  # outside the sandbox it connects
        finally:
            server.kill()


def test_no_network_where_there_are_no_namespaces(tmp_path):
    """As in a container, whose runtime refuses unshare(2): here a filter of ours does."""
    if os.uname().machine != "x86_64":
        pytest.skip("needs x86-64, whose number of unshare is written here")
    script = f"""
        import socket
        from pathlib import Path
        from nanocode_core.agent import zygote
        from nanocode_core.agent.sandbox import Sandbox
        refuse, allow = ((zygote.RETURN, 0, 0, answer) for answer in (zygote.REFUSE, zygote.ALLOW))
        zygote.filter_calls((zygote.LOAD, 0, 0, zygote.NUMBER), (zygote.JUMP_EQUAL, 0, 1, 272), refuse, allow)
        there = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        there.bind(("127.0.0.1", 0))
        send = f"import socket; socket.socket(2, 2).sendto(b'x', ('127.0.0.1', {{there.getsockname()[1]}}))"
        exec(send)
        assert there.recv(10) == b"x"
        there.setblocking(False)
        with Sandbox() as box:
            print(box.isolation.network, box.isolation.processes)
            for family, kind in ((2, 1), (2, 2), (10, 1), (10, 2), (16, 3), (17, 3), (40, 1)):
                said = box.python(f"import socket; socket.socket({{family}}, {{kind}})", Path({str(tmp_path)!r}), 20)
                assert "PermissionError" in said.output, (family, said)
            ring = "import ctypes; c = ctypes.CDLL(None, use_errno=True); c.syscall(425, 8, bytes(120)); "
            assert box.python(ring + "print(ctypes.get_errno())", Path({str(tmp_path)!r}), 20).output == "13\\n"
            for way in ("python", "run"):
                what = send if way == "python" else ["python", "-c", send]
                assert "PermissionError" in getattr(box, way)(what, Path({str(tmp_path)!r}), 20).output
            print(box.python("import socket; a, b = socket.socketpair(); a.send(b'unix'); print(b.recv(9))",
                             Path({str(tmp_path)!r}), 20).output)
        try:
            there.recv(10)
        except BlockingIOError:
            print("nothing came")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=200)
    assert done.stdout.split("\n")[:3] == ["True False", "b'unix'", ""], done.stderr
    assert done.stdout.endswith("nothing came\n")


def test_files_outside_are_out_of_reach(sandbox, tmp_path):
    if not sandbox.isolation.files:
        pytest.skip("no Landlock here")
    work = tmp_path / "work"
    work.mkdir()
    secret = tmp_path / "secret"
    secret.write_text("42")
    (work / "link").symlink_to(secret)
    done = sandbox.run(
        f"cat {secret}; cat link; echo no > {secret}; rm {secret}; ls {tmp_path}; touch /tmp/nanocode-x", work, 10
    )
    assert "42" not in done.output
    assert secret.read_text() == "42"
    assert not Path("/tmp/nanocode-x").exists()


def test_limits(sandbox, tmp_path):
    done = sandbox.python("open('big', 'wb').write(b'x' * (100 << 20))", tmp_path, 20)
    assert done.exit_code != 0
    assert "MemoryError" in sandbox.python("b'x' * (8 << 30)", tmp_path, 20).output
    done = sandbox.run("yes", tmp_path, 0.5)
    assert done.timed_out
    assert done.cut
    assert len(done.output) <= 64 * 1024


def test_end_with_the_parent(tmp_path):
    script = f"""
        from pathlib import Path
        from nanocode_core.agent.sandbox import Sandbox
        box = Sandbox()
        print(box.scratch, flush=True)
        box.run("sleep 4713", Path({str(tmp_path)!r}), 60)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    scratch = Path(parent.stdout.readline().strip())
    assert scratch.is_dir()
    assert _soon(lambda: not _gone("sleep 4713", 0))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert _gone("sleep 4713")
    assert _soon(lambda: not scratch.exists())


def test_usable_from_several_threads_and_after_its_helper_died(sandbox, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        outputs = list(pool.map(lambda n: sandbox.run(f"echo {n}", tmp_path, 10).output, range(24)))
    assert outputs == [f"{n}\n" for n in range(24)]
    with Sandbox() as box:
        box.isolation  # noqa: B018 -- starts the helper
        box._helper._process.kill()
        box._helper._process.wait()
        assert box.run("echo back", tmp_path, 10).output == "back\n"
