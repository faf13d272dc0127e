"""What one generation took, from whom, for whom, and how it ended: one line of the ledger."""

from collections.abc import Iterable
from decimal import Decimal

import msgspec

from service.domain.generation import Usage
from service.domain.limits import NANO
from service.errors import Fault

CANCELLED = "cancelled"
"""The outcome of what its caller left or ended."""
CRASHED = "crashed"
"""The outcome of what ended with its process."""
OK = "ok"

NOTHING = Usage(0, 0)
"""What a call took that was refused, or never sent."""
UNKNOWN = Usage(0, 0, estimated=True)
"""What a call took that failed before it said anything, for all that is known."""


class CallRecord(msgspec.Struct, frozen=True):
    """One call to one provider. A call that took nothing has no usage."""

    id: str
    """Under which it was made: the header ``X-Client-Request-Id``."""
    provider: str
    model: str
    """The provider's name for it."""
    outcome: str
    """``ok``, ``cancelled``, or an error's code."""
    usage: Usage = NOTHING
    cost_nano_usd: int | None = None
    """None where the model has no price."""
    invoiced: bool = False
    """Whether the usage is what the provider's invoice says."""


class UsageRecord(msgspec.Struct, frozen=True):
    """One generation. While it runs, it is a draft, which has no end and whose calls may still change."""

    id: str
    """Ours; no two generations have the same, whatever callers send."""
    request_id: str
    began_at: float
    """Seconds since the epoch."""
    principal: str
    model: str
    """The configured name, or the pattern."""
    asked_model: str
    """The name that the caller gave."""
    providers: tuple[str, ...] = ()
    """Those that may be asked, in order of preference."""
    user: str | None = None
    ended_at: float | None = None
    streamed: bool = False
    background: bool = False
    outcome: str = ""
    """``ok``, ``cancelled``, ``crashed``, or an error's code."""
    fault: Fault = "none"
    finish_reason: str | None = None
    calls: tuple[CallRecord, ...] = ()
    total_s: float = 0.0
    limits_s: float = 0.0
    """Until the word on its limits."""
    queue_s: float = 0.0
    """Waiting for turns at providers."""
    upstream_s: float = 0.0
    """While a call to a provider ran."""
    first_content_s: float | None = None
    """From the request to the first content; None where none came, or the answer came in one piece."""
    price: str | None = None
    """Which price it was: its day and its source."""
    trace_id: str | None = None
    estimate: Usage = UNKNOWN
    """What it was taken for before it began."""

    @property
    def provider(self) -> str | None:
        """The provider that was asked last."""
        return self.calls[-1].provider if self.calls else None

    @property
    def usage(self) -> Usage:
        """What all calls took together."""
        return summed(call.usage for call in self.calls)

    @property
    def cost_nano_usd(self) -> int | None:
        """What all calls cost together; None where one of them has no price."""
        costs = [call.cost_nano_usd for call in self.calls if call.usage.input_tokens or call.usage.output_tokens]
        known = [cost for cost in costs if cost is not None]
        return sum(known) if len(known) == len(costs) else None

    @property
    def cost_usd(self) -> Decimal | None:
        """The same in US dollars, exact to the nano-dollar."""
        cost = self.cost_nano_usd
        return None if cost is None else Decimal(cost) / NANO


def summed(usages: Iterable[Usage]) -> Usage:
    """Add up; the sum is estimated if a part of it is."""
    total = Usage(0, 0)
    for usage in usages:
        total = Usage(
            total.input_tokens + usage.input_tokens,
            total.output_tokens + usage.output_tokens,
            total.cached_input_tokens + usage.cached_input_tokens,
            total.cache_write_tokens + usage.cache_write_tokens,
            total.reasoning_tokens + usage.reasoning_tokens,
            estimated=total.estimated or usage.estimated,
        )
    return total
