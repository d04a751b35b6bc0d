"""The `scripted` teacher: a local OpenAI-compatible server that answers by rule. It is not a language model.

    python -m nanocode_core.constitution.scripted --port 0

It prints one JSON line with its address and serves POST /v1/chat/completions (with a json_schema
response format), GET /v1/models and GET /health. It keeps no state: a request's messages hold all that
an answer depends on, so the same request has the same answer, now and after a restart. Tasks come
from the programmed families, turns from their players (some drafts with a planted flaw, see
`flaws.py`), critiques from the rules of the constitution in the prompt.
"""

import argparse
import asyncio
import functools
import json
import re
import socket
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nanocode_core.constitution.critic import critique
from nanocode_core.constitution.families import FAMILIES
from nanocode_core.constitution.flaws import draft
from nanocode_core.constitution.prompts import tasks_to_json
from nanocode_core.constitution.soul import Rules, parse_rules
from nanocode_core.constitution.task import Task
from nanocode_core.tokenizer.conversation import turn_from_json, turn_to_json

MODEL = "scripted"


class BadRequest(Exception):
    """The request is none that this teacher can answer."""


def answer(body: dict[str, Any]) -> dict[str, Any]:
    """The JSON answer to a chat completion request's body.

    Raises:
        BadRequest: it is not one of the requests of `prompts.py`.
    """
    try:
        kind = body["response_format"]["json_schema"]["name"]
        messages = {message["role"]: message["content"] for message in body["messages"]}
        what = json.loads(messages["user"])
        rules = _rules(messages["system"])
        match kind:
            case "tasks":
                family = FAMILIES[what["family"]]
                numbers = range(what["first"], what["first"] + what["count"])
                return tasks_to_json([family.task(what["seed"], number) for number in numbers])
            case "turn":
                task, turns = Task.from_json(what["task"]), [turn_from_json(turn) for turn in what["conversation"]]
                turn = turn_to_json(draft(task, turns, rules, what["attempt"]))
                return {"text": turn["text"], "call": turn["call"]}
            case "critique":
                turns = [turn_from_json(turn) for turn in what["conversation"]]
                return critique(Task.from_json(what["task"]), turns, rules)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, StopIteration) as error:
        raise BadRequest(f"the scripted teacher can't answer this request: {error!r}") from error
    raise BadRequest(f"the scripted teacher knows no {kind!r}; ask for tasks, turn or critique")


@functools.lru_cache(maxsize=64)
def _rules(system: str) -> Rules:
    """The rules of the constitution in a system message."""
    found = re.search(r"<constitution>\n(.*)\n</constitution>", system, re.S)
    if not found:
        raise ValueError("no constitution in the system message")
    return parse_rules(found.group(1))


async def _complete(request: Request) -> Response:
    try:
        body = json.loads(await request.body())
        content = json.dumps(answer(body), ensure_ascii=False)
    except (BadRequest, ValueError) as error:
        return JSONResponse({"error": {"message": str(error), "type": "invalid_request_error"}}, 400)
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
    return JSONResponse(
        {
            "id": "scripted",
            "object": "chat.completion",
            "created": 0,
            "model": MODEL,
            "choices": [choice],
            "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        }
    )


async def _models(request: Request) -> Response:
    model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "nanocode"}
    return JSONResponse({"object": "list", "data": [model]})


async def _health(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


def application() -> Starlette:
    """The web application."""
    return Starlette(
        routes=[
            Route("/v1/chat/completions", _complete, methods=["POST"]),
            Route("/v1/models", _models),
            Route("/health", _health),
        ]
    )


def main() -> None:
    """Listen on the local host until the process ends."""
    parser = argparse.ArgumentParser(description="The scripted teacher; not a language model.")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    listener = socket.create_server(("127.0.0.1", parser.parse_args().port), backlog=256)
    print(json.dumps({"base_url": f"http://127.0.0.1:{listener.getsockname()[1]}/v1", "model": MODEL}), flush=True)
    config = uvicorn.Config(application(), log_level="warning", access_log=False, lifespan="off")
    asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))


if __name__ == "__main__":
    main()
