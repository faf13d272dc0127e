"""What a request asks of a provider, for whom, and until when."""

from collections.abc import Callable
from dataclasses import dataclass, field

from service.domain.principal import Priority
from service.domain.timings import Timings


@dataclass(frozen=True, slots=True)
class Work:
    """One request, as a queue looks at it."""

    principal: str
    priority: Priority
    weight: float
    """The principal's share, against others' of its priority."""
    input_tokens: int
    """Estimated."""
    output_tokens: int
    """Estimated."""
    ticket: Callable[[], str]
    """Makes what it is known by when it comes again."""
    deadline_at: float | None = None
    """Monotonic seconds after which the answer is of no use to its caller, if that is known."""
    timings: Timings = field(default_factory=Timings, compare=False)
    """Where its time goes."""

    @property
    def tokens(self) -> int:
        """What the vendor counts."""
        return self.input_tokens + self.output_tokens
