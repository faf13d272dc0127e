"""Who calls, and what belongs to one call beside its question."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls."""

    name: str
    """The name of the API key, or ``anonymous``."""
    models: tuple[str, ...] = ("*",)
    """Public model names or patterns (``team-a/*``) that this principal may use."""
    priority: Literal["interactive", "batch"] = "interactive"


ANONYMOUS = Principal("anonymous")
"""Who calls where authentication is off."""


@dataclass(frozen=True, slots=True)
class RequestContext:
    """What belongs to one request and not to what it asks."""

    request_id: str
    principal: Principal = field(default=ANONYMOUS)
    received_at: float = 0.0
    """Monotonic seconds at which the request was fully received."""
