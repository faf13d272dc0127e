"""`helm test`: asks a release through its Service, from a pod of its own, for what a first caller would.

Waits until the release is ready, `TIMEOUT_S` at most; the last line that it writes says what was wrong.
"""
# ruff: noqa: INP001, T201 - runs inside of a pod, which has no package around it and no other way to speak

import json
import os
import sys
import time
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

ADDRESS = os.environ["ADDRESS"]
END = time.monotonic() + float(os.environ["TIMEOUT_S"])
REQUEST_TIMEOUT_S = 30.0
PAUSE_S = 1.0


class Failed(Exception):  # noqa: N818 - it reads as what happened
    """What was asked gave no good answer."""


def ask(path: str, body: dict[str, str] | None = None) -> Any:
    """Return what a good answer says; raise ``Failed`` with what came in place of it."""
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("CALLER_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    request = Request(ADDRESS + path, data, headers)  # noqa: S310 - http, and nobody else's
    timeout_s = max(min(REQUEST_TIMEOUT_S, END - time.monotonic()), PAUSE_S)
    try:
        with urlopen(request, timeout=timeout_s) as response:  # noqa: S310 - the same
            text = response.read().decode()
    except HTTPError as error:
        raise Failed(f"{path} answered {error.code}: {error.read().decode(errors='replace')}") from None
    except (OSError, HTTPException) as error:
        raise Failed(f"{path} gave no answer at {ADDRESS}: {error}") from None
    print(path, response.status, text, flush=True)
    try:
        return json.loads(text)
    except ValueError:
        raise Failed(f"{path} answered what is not JSON: {text}") from None


def ask_until(path: str, name: str, value: object) -> None:
    """Ask again and again until the answer says so, or the time is over."""
    while True:
        try:
            answer = ask(path)
        except Failed as failed:
            problem = failed
        else:
            if answer.get(name) == value:
                return
            problem = Failed(f"{path} answered {answer}, without {name}: {value}")
        if time.monotonic() + PAUSE_S >= END:
            raise problem
        print(problem, flush=True)
        time.sleep(PAUSE_S)


def main() -> None:
    """Ask for everything."""
    ask_until("/health", "status", "ok")
    ask_until("/ready", "ready", value=True)
    if "CALLER_KEY" not in os.environ:
        print("/generate was not asked: no caller's key is known here (tests.callerKeySecret)")
        return
    question = {"prompt": "What is the capital of France?"}
    if model := os.environ["MODEL"]:
        question["model"] = model
    answer = ask("/generate", question)
    if not answer.get("text"):
        raise Failed(f"/generate answered without a text: {answer}")


try:
    main()
except Failed as failed:
    sys.exit(f"FAILED: {failed}")
