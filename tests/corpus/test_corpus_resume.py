"""A build killed at any moment and started again ends with the same bytes, and nothing outlives it."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import psutil
from corpus_tables import tree, write_parquet

BUILD = """
import json, sys
from pathlib import Path
if __name__ == "__main__":
    from nanocode_core.config import load_config
    from nanocode_core.corpus.build import build
    from nanocode_core.jobs.job import Job
    work = Path(sys.argv[1])
    (work / "out").mkdir(parents=True, exist_ok=True)
    config = load_config("demo", overrides=json.loads(sys.argv[2]))
    build(Job("corpus", "0" * 16, config, {}, work, work / "out", None))
"""


def start(tmp_path, work, section):
    script = tmp_path / "script.py"
    script.write_text(BUILD)
    overrides = json.dumps({"corpus": section, "run": {"cache": str(tmp_path / "cache")}})
    return subprocess.Popen([sys.executable, script, work, overrides], stdout=subprocess.DEVNULL)


def test_kill_and_restart_give_the_same_bytes(tmp_path):
    words = [f"{n:x}" * 5 for n in range(500)]
    pick = random.Random(0)
    texts = [" ".join(pick.choices(words, k=100)) for _ in range(12_000)]
    for number in range(4):
        write_parquet(tmp_path / f"a{number}.parquet", texts[number * 3_000 : (number + 1) * 3_000])
    source = {"kind": "files", "name": "a", "content": "prose", "paths": [f"{tmp_path}/a*.parquet"]}
    code = {"kind": "python", "name": "c", "content": "code"}
    section = {
        "sources": [source, code], "code_share": 0.2, "characters": 5_000_000, "shard_characters": 500_000,
        "validation_characters": 10_000, "workers": 2,
    }  # fmt: skip
    began = time.monotonic()
    assert start(tmp_path, tmp_path / "whole", section).wait() == 0
    seconds = time.monotonic() - began

    children = []
    for share in (0.5, 0.8):
        process = start(tmp_path, tmp_path / "killed", section)
        deadline = time.monotonic() + share * seconds
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        if process.poll() is None:
            children += psutil.Process(process.pid).children(recursive=True)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
    assert children
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    assert start(tmp_path, tmp_path / "killed", section).wait() == 0
    assert tree(tmp_path / "killed" / "out") == tree(tmp_path / "whole" / "out")
    assert len(list((tmp_path / "whole" / "out" / "train").iterdir())) == 10
