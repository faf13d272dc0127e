"""What the programs of candidates share; runs in their environments, so it knows the standard library alone."""

import asyncio
import json
import os
import sys
import urllib.request
from collections.abc import Awaitable, Callable
from typing import Any

URL = f"{os.environ.get('UPSTREAM', '')}/v1/chat/completions"
HEADERS = {"Content-Type": "application/json", "Authorization": "Bearer sk-upstream-0123456789"}

Handler = Callable[[str], Awaitable[dict[str, Any]]]


def body(job: str) -> bytes:
    """Return what is asked of the simulator for a job."""
    return json.dumps(
        {
            "model": os.environ["MODEL_PREFIX"] + job,
            "max_tokens": int(os.environ["MAX_TOKENS"]),
            "stream": True,
            "messages": [{"role": "user", "content": "Hello."}],
        }
    ).encode()


def text_of(line: str) -> str:
    """Return the text that a line of the answer brings."""
    if not line.startswith("data: {"):
        return ""
    return "".join(choice["delta"].get("content") or "" for choice in json.loads(line[6:])["choices"])


def answer(job: str) -> str:
    """Ask the simulator, as one streamed chat completion; return the text."""
    request = urllib.request.Request(URL, body(job), HEADERS)  # noqa: S310 - the simulator's own address
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310 - the same
        return "".join(text_of(line.decode()) for line in response)


async def serve(handlers: dict[str, Handler]) -> None:
    """Answer lines of ``[number, what, job]``, side by side, until there are no more."""
    loop = asyncio.get_running_loop()
    running: set[asyncio.Task[None]] = set()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        number, what, job = json.loads(line)
        task = asyncio.create_task(_reply(number, handlers[what], job))
        running.add(task)
        task.add_done_callback(running.discard)


async def _reply(number: int, handler: Handler, job: str) -> None:
    try:
        reply = await asyncio.wait_for(handler(job), 20)
    except Exception as error:  # noqa: BLE001 - whoever asked is told
        reply = {"error": repr(error)}
    sys.stdout.write(json.dumps({**reply, "number": number}) + "\n")
    sys.stdout.flush()
