"""What the programs of candidates share; runs in their environments, so it knows the standard library alone."""

import asyncio
import json
import os
import sys
import urllib.request
from collections.abc import Awaitable, Callable
from typing import Any


def answer(job: str) -> str:
    """Ask the simulator, as one streamed chat completion; return the text."""
    body = {
        "model": os.environ["MODEL_PREFIX"] + job,
        "max_tokens": int(os.environ["MAX_TOKENS"]),
        "stream": True,
        "messages": [{"role": "user", "content": "Hello."}],
    }
    request = urllib.request.Request(  # noqa: S310 - the simulator's own address
        os.environ["UPSTREAM"] + "/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", "Authorization": "Bearer sk-upstream-0123456789"},
    )
    text = ""
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310 - the same
        for line in response:
            if line.startswith(b"data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    text += choice["delta"].get("content") or ""
    return text


async def serve(handlers: dict[str, Callable[[str], Awaitable[dict[str, Any]]]]) -> None:
    """Answer lines of ``[what, job]`` until there are no more."""
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        what, job = json.loads(line)
        try:
            reply = await handlers[what](job)
        except Exception as error:  # noqa: BLE001 - whoever asked is told
            reply = {"error": repr(error)}
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()
