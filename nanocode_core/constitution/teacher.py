"""The teacher's client: any OpenAI-compatible endpoint, every answer kept.

An accepted answer is appended to a file of JSON lines, under the hash of its request, before anyone
uses it; a restart finds it there and asks only for what is missing. Keys come from the environment
(OPENAI_API_KEY, OPENROUTER_API_KEY) and go nowhere but into the request.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import openai

from nanocode_core.constitution.prompts import Request
from nanocode_core.errors import UserError

SCRIPTED = "scripted"
OPENROUTER = "https://openrouter.ai/api/v1"
SECONDS = 180.0
RETRIES = 8
"""By the client itself, with exponential backoff: connection errors, timeouts, 408, 409, 429, 5xx."""
PAUSE = 5.0
"""Seconds before the client is sent again to a teacher that is away."""
TELL = 60.0
"""Seconds between two lines that say so."""


class BadAnswer(Exception):
    """The teacher's answer is not the JSON that was asked for."""


@dataclass(frozen=True)
class Endpoint:
    """Where a teacher listens. The key is left out of `repr`, and so of every log."""

    model: str
    base_url: str
    key: str

    def __repr__(self) -> str:
        """Without the key."""
        return f"Endpoint({self.model!r}, {self.base_url!r})"


def remote_endpoint(model: str, base_url: str | None) -> Endpoint:
    """The endpoint of a language model; its key from the environment.

    Raises:
        UserError: neither an address nor a key says where to ask.
    """
    openai_key, openrouter_key = os.environ.get("OPENAI_API_KEY"), os.environ.get("OPENROUTER_API_KEY")
    if base_url is not None:
        key = (openrouter_key if "openrouter.ai" in base_url else openai_key) or "none"
        return Endpoint(model, base_url, key)
    if openrouter_key and not openai_key:
        return Endpoint(model, OPENROUTER, openrouter_key)
    if openai_key:
        return Endpoint(model, "https://api.openai.com/v1", openai_key)
    raise UserError(
        f"synthetic.teacher is {model!r}, but nothing says where it is: set synthetic.base_url (a vLLM server, say), "
        "or OPENAI_API_KEY or OPENROUTER_API_KEY in the environment"
    )


@contextlib.contextmanager
def scripted_server() -> Iterator[Endpoint]:
    """The scripted teacher in a process of its own, which ends with this block or with this process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "nanocode_core.jobs.tether", "nanocode_core.constitution.scripted", "--port", "0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "NANOCODE_TETHER": "1"},
        start_new_session=True,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        hello = process.stdout.readline()
        if not hello:
            raise RuntimeError(f"the scripted teacher did not start (exit code {process.wait()}); its error is above")
        address = json.loads(hello)
        yield Endpoint(address["model"], address["base_url"], "none")
    finally:
        process.stdin.close()
        process.kill()
        process.stdout.close()
        process.wait()


class Answers:
    """Accepted answers in an append-only file of JSON lines; a line cut short by a kill is dropped."""

    def __init__(self, path: Path) -> None:
        self._known: dict[str, str] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = path.open("ab+")
        self._file.seek(0)
        whole = 0
        for line in self._file:
            try:
                value = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n"):
                break
            self._known[value["key"]] = value["answer"]
            whole += len(line)
        self._file.truncate(whole)

    def __len__(self) -> int:
        """How many answers there are."""
        return len(self._known)

    def get(self, key: str) -> str | None:
        """The answer kept under a key."""
        return self._known.get(key)

    def keep(self, key: str, answer: str) -> None:
        """Append an answer; it is in the file when this returns."""
        self._known[key] = answer
        self._file.write(json.dumps({"key": key, "answer": answer}).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Teacher:
    """Asks one endpoint, or finds the answer among those kept.

    Args:
        patience: seconds that a request waits for an endpoint which has answered before and now does not; one
            that never has is an error at once, for most likely its address is wrong.
        log: told that it waits, in a line a minute.

    Attributes:
        asked: requests that went to the endpoint.
    """

    def __init__(
        self, endpoint: Endpoint, answers: Answers, patience: float, log: Callable[[str], None] = print
    ) -> None:
        self._endpoint = endpoint
        self._answers = answers
        self._patience, self._log = patience, log
        self._has_answered, self._told = len(answers) > 0, -TELL
        self._client = openai.AsyncOpenAI(
            base_url=endpoint.base_url, api_key=endpoint.key, timeout=SECONDS, max_retries=RETRIES
        )
        self.asked = 0

    async def ask(self, request: Request) -> dict[str, Any]:
        """The JSON object that the teacher answers.

        Raises:
            BadAnswer: it answered something else.
            UserError: the endpoint can't be reached or refuses.
        """
        key = self._key(request)
        kept = self._answers.get(key)
        if kept is not None:
            return json.loads(kept)  # type: ignore[no-any-return]
        content = await self._complete(request)
        try:
            answer = json.loads(content)
        except ValueError:
            raise BadAnswer(f"not JSON: {content[:80]!r}") from None
        if not isinstance(answer, dict):
            raise BadAnswer(f"not a JSON object: {content[:80]!r}")
        self._answers.keep(key, content)
        return answer

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def _key(self, request: Request) -> str:
        parts = [self._endpoint.model, request.schema, request.system, request.user, repr(request.temperature)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    async def _complete(self, request: Request) -> str:
        place = f"the teacher {self._endpoint.model!r} at {self._endpoint.base_url}"
        self.asked += 1
        begin = time.monotonic()
        while True:
            try:
                completion = await self._post(request)
                break
            except openai.AuthenticationError:
                raise UserError(f"{place} refuses the key; check OPENAI_API_KEY or OPENROUTER_API_KEY") from None
            except (openai.APIConnectionError, openai.InternalServerError) as error:
                if not self._has_answered or time.monotonic() - begin > self._patience:
                    raise _away(place, error) from None
                if time.monotonic() - self._told >= TELL:
                    self._told = time.monotonic()
                    self._log(f"{place} is away ({_reason(error)}): waiting up to {self._patience:.0f} s for it")
            except openai.APIStatusError as error:
                raise _away(place, error) from None
            await asyncio.sleep(PAUSE)
        self._has_answered = True
        try:
            return str(completion["choices"][0]["message"]["content"])
        except (KeyError, IndexError, TypeError):
            raise BadAnswer("not a chat completion") from None

    async def _post(self, request: Request) -> Any:
        # The client's generic request: its typed one walks through schema and answer piece by
        # piece, for longer than the scripted teacher needs to answer.
        return await self._client.post(
            "/chat/completions",
            body={
                "model": self._endpoint.model,
                "messages": request.messages,
                "temperature": request.temperature,
                "response_format": request.response_format,
            },
            cast_to=object,
        )


def _reason(error: openai.APIError) -> str:
    text = " ".join(error.message.split())[:200]
    return f"status {error.status_code}: {text}" if isinstance(error, openai.APIStatusError) else text


def _away(place: str, error: openai.APIError) -> UserError:
    if isinstance(error, openai.APIStatusError):
        return UserError(f"{place} answers with {_reason(error)}; what it has answered is kept")
    return UserError(f"{place} does not answer ({_reason(error)}); check synthetic.base_url, then run again")
