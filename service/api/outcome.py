"""What became of a request, in words of closed sets: whose fault it was, and in which family of routes it came."""

from functools import lru_cache
from typing import Final

from starlette.types import Scope

from service.errors import Fault

OUTCOME: Final = "llm_api.outcome"
"""Where the scope says how a stream ended, for the log of requests."""
HAS_BEGUN: Final = "llm_api.has_begun"
"""Where the scope says that the status of an answer is out: nothing else can be answered from then on."""
FAULT: Final = "llm_api.fault"
"""Where the scope says whose fault it is that a request did not end well."""

CLIENT_LEFT = 499
"""The status of a request whose client did not wait for one."""
_FIRST_MISTAKE, _FIRST_DEFECT = 400, 500
_OF_OUTCOMES: dict[str, Fault] = {"client_disconnect": "caller", "slow_client": "caller", "complete": "none"}
_FAMILIES = (
    ("/generate/async", "jobs"),
    ("/generate", "generate"),
    ("/chat", "chat"),
    ("/stream", "stream"),
    ("/v1/chat/", "openai"),
    ("/v1/embeddings", "embeddings"),
    ("/v1/messages", "anthropic"),
    ("/v1/files", "batches"),
    ("/v1/batches", "batches"),
    ("/v1/uploads", "batches"),
    ("/ws", "ws"),
)
"""How templates of routes begin, and the families that they make; the first that fits counts."""
_POLLED = ("/generate/async/", "/v1/files", "/v1/batches", "/v1/uploads")
"""How templates of those begin that tell of background work where they are read."""


def fault_of(scope: Scope, status: int) -> Fault:
    """Say whose fault it is how a request ended: by what was noted, else by its status and outcome."""
    noted: Fault | None = scope.get(FAULT)
    if noted is not None:
        return noted
    if status >= _FIRST_DEFECT:
        return "us"
    if status >= _FIRST_MISTAKE:
        return "caller"
    outcome = scope.get(OUTCOME)
    return "none" if outcome is None else _OF_OUTCOMES.get(outcome, "us")


@lru_cache(maxsize=256)
def family_of(route: str, method: str = "") -> str:
    """Return the family of a route's template; ``other`` where nothing is generated.

    Who reads how a job or batch is polls, however much is generated: that is a family of its own.
    """
    if method == "GET" and route.startswith(_POLLED):
        return "polls"
    return next((family for start, family in _FAMILIES if route.startswith(start)), "other")
