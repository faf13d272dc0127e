"""Who calls, and what belongs to one call beside its question."""

from dataclasses import dataclass, field
from typing import Literal

from service.domain.limits import UNLIMITED, Limits, Standing


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls."""

    name: str
    """The name of the API key, or ``anonymous``."""
    models: tuple[str, ...] = ("*",)
    """Public model names or patterns (``team-a/*``) that this principal may use."""
    priority: Literal["interactive", "batch"] = "interactive"
    limits: Limits = UNLIMITED
    """What all of its requests together may take."""
    user_limits: Limits = UNLIMITED
    """What each of its users may take."""


ANONYMOUS = Principal("anonymous")
"""Who calls where authentication is off and nothing is limited."""


@dataclass(frozen=True, slots=True)
class RequestContext:
    """What belongs to one request and not to what it asks."""

    request_id: str
    principal: Principal = field(default=ANONYMOUS)
    received_at: float = 0.0
    """Monotonic seconds at which the request was fully received."""
    standing: Standing = field(default_factory=Standing, compare=False)
    """What admission found; the one thing in here that changes."""
