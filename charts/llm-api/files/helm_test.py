"""`helm test`: asks a release through its Service, from a pod of its own, for what a first caller would."""
# ruff: noqa: INP001, T201 - runs inside of a pod, which has no package around it and no other way to speak

import json
import os
import urllib.request

ADDRESS = os.environ["ADDRESS"]


def ask(path: str, body: dict[str, str] | None = None) -> str:
    """Return the body of an answer; any status but a good one raises."""
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("CALLER_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(ADDRESS + path, data, headers)  # noqa: S310 - http, and nobody else's
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310 - the same
        text: str = response.read().decode()
    print(path, response.status, text, flush=True)
    return text


assert json.loads(ask("/health"))["status"] == "ok"  # noqa: S101 - a test
assert json.loads(ask("/ready"))["ready"] is True  # noqa: S101 - the same
if "CALLER_KEY" in os.environ:
    question = {"prompt": "What is the capital of France?"}
    if model := os.environ["MODEL"]:
        question["model"] = model
    assert json.loads(ask("/generate", question))["text"]  # noqa: S101 - the same
else:
    print("/generate was not asked: no caller's key is known here (tests.callerKeySecret)")
