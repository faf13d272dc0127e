"""Who calls, and what belongs to one call beside its question."""

from dataclasses import dataclass, field
from typing import Literal

from service.domain.limits import UNLIMITED, Limits, Standing
from service.domain.request_line import RequestLine
from service.domain.timings import Timings
from service.domain.trace import Span, exemplar_of

Priority = Literal["interactive", "batch"]
"""Where requests wait, all that is interactive goes before all that is batch."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls."""

    name: str
    """The name of the API key, or ``anonymous``."""
    models: tuple[str, ...] = ("*",)
    """Public model names or patterns (``team-a/*``) that this principal may use."""
    priority: Priority = "interactive"
    weight: float = 1.0
    """Its share of what a provider can do, against others' of its priority."""
    limits: Limits = UNLIMITED
    """What all of its requests together may take."""
    user_limits: Limits = UNLIMITED
    """What each of its users may take."""
    sees_all_usage: bool = False
    """Whether it may ask for the usage of others too."""
    log_content: bool = False
    """Whether the log has what it asks and is answered."""
    key_digest: bytes | None = field(default=None, compare=False, repr=False)
    """SHA-256 of the key that was shown; None where there was none, or where nobody knows any more."""


ANONYMOUS = Principal("anonymous")
"""Who calls where authentication is off and nothing is limited."""


@dataclass(frozen=True, slots=True)
class RequestContext:
    """What belongs to one request and not to what it asks."""

    request_id: str
    principal: Principal = field(default=ANONYMOUS)
    received_at: float = 0.0
    """Monotonic seconds at which the request was fully received."""
    deadline_at: float | None = None
    """Monotonic seconds after which the answer is of no use to the caller, if it said so."""
    background: bool = False
    """Whether nobody waits for the answer: then it goes after all that is interactive."""
    standing: Standing = field(default_factory=Standing, compare=False)
    """What admission found; it changes, as the next two do."""
    timings: Timings = field(default_factory=Timings, compare=False)
    """Where the time went, so far."""
    line: RequestLine | None = field(default=None, compare=False)
    """The line that the request's log will have; None where a generation has one of its own."""
    span: Span | None = field(default=None, compare=False, repr=False)
    """Under which everything that is done for it is told; None where it is not traced."""

    @property
    def trace_id(self) -> str | None:
        """The id of the request's trace; None where it has none."""
        return None if self.span is None else self.span.trace_id

    @property
    def exemplar(self) -> str | None:
        """The id of the trace that a measured value may name; None where no collector has it."""
        return exemplar_of(self.span)

    @property
    def log_fields(self) -> dict[str, str]:
        """What a log line says of the request, so that it can be found."""
        trace = {} if self.span is None else {"trace_id": self.span.trace_id}
        return {"request_id": self.request_id, **trace}

    @property
    def priority(self) -> Priority:
        """The class in which the request waits for a provider."""
        return "batch" if self.background else self.principal.priority
