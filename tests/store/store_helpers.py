import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager

FILES = {"train/shard.bin": b"abc" * 1000, "corpus.json": b"{}\n", "logs/metrics.jsonl": b'{"time": 1}\n'}


def put(store, stage="corpus", key="ab12", files=None, inputs=None, finished=1.0, metrics=None, config=None):
    """Publish an artifact the way the worker does; its record."""
    work = store.work_dir(stage, key)
    out = work / "out"
    for name, data in (FILES if files is None else files).items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    out.mkdir(exist_ok=True)
    record = store.publish(
        stage=stage,
        version=1,
        fingerprint=key,
        config=config or {"seed": 0},
        inputs=inputs or {},
        out=out,
        metrics=metrics or {},
        provenance={"finished": finished, "minutes": 0.5},
    )
    shutil.rmtree(work)
    return record


@contextmanager
def python(code, *args):
    """A Python process that runs `code` and is killed at the end; its first line of output has been read."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        process.first = process.stdout.readline()
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
