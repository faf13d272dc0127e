"""Who is next: by class, and within a class the principal that has had the least, by its weight.

Virtual token counters (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024): each principal has a
counter of the tokens that it was served; the backlogged one with the least is next; who comes back from idleness is
lifted to the others, so that nobody saves up. The difference between two that are backlogged stays bounded.
"""

import math
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from service.domain.principal import Priority

INPUT_WEIGHT, OUTPUT_WEIGHT = 1.0, 2.0
"""An output token costs a provider more than an input token; the weights of the paper."""
FLOWS_AT_LEAST = 256
"""So many principals are remembered before idle ones are forgotten."""
CLASSES: Final[dict[Priority, int]] = {"interactive": 0, "batch": 1}

W = TypeVar("W")


def virtual_tokens(input_tokens: int, output_tokens: int) -> float:
    """Return what a request costs in the counters."""
    return INPUT_WEIGHT * input_tokens + OUTPUT_WEIGHT * output_tokens


@dataclass(slots=True, eq=False)
class Flow(Generic[W]):
    """The requests of one principal in one class."""

    principal: str
    rank: int
    """Of its class: the lowest goes first."""
    weight: float
    counter: float = 0.0
    """Virtual tokens served, by weight."""
    estimated: float = 0.0
    """What of it is estimated, of calls that run."""
    running: int = 0
    waiting: dict[W, float] = field(default_factory=dict)
    """In order; with what each costs."""
    wanted: float = 0.0
    """What those that wait cost together."""
    booked_until: float = -math.inf
    """Monotonic seconds at which the last of its requests that were refused is to come again."""

    @property
    def is_idle(self) -> bool:
        """Whether it has nothing here."""
        return not self.waiting and not self.running


class FairQueue(Generic[W]):
    """Requests that wait for one provider."""

    def __init__(self) -> None:
        self._flows: dict[tuple[str, int], Flow[W]] = {}
        self._expected: dict[W, Flow[W]] = {}
        """Who was told to come at this time, in order."""
        self._served: list[float] = [0.0] * len(CLASSES)
        """By class: the most that somebody had been served before its last request that ended; it never falls."""
        self._length = 0
        """Of those that wait in flows."""

    def __len__(self) -> int:
        return self._length + len(self._expected)

    def flow(self, principal: str, priority: Priority, weight: float) -> Flow[W]:
        """Return a principal's flow, lifted to the others if it had nothing here."""
        rank = CLASSES[priority]
        flow = self._flows.get((principal, rank))
        if flow is None:
            if len(self._flows) >= FLOWS_AT_LEAST:
                self._flows = {key: flow for key, flow in self._flows.items() if not flow.is_idle}
            flow = self._flows[principal, rank] = Flow(principal, rank, weight)
        flow.weight = weight
        if flow.is_idle:
            flow.counter = max(flow.counter, self._least(rank))
        return flow

    def add(self, flow: Flow[W], waiter: W, cost: float) -> None:
        """Let a request wait behind the others of its flow."""
        if not flow.waiting and flow.running:
            flow.counter = max(flow.counter, self._least(flow.rank))
        flow.waiting[waiter] = cost
        flow.wanted += cost
        self._length += 1

    def add_expected(self, flow: Flow[W], waiter: W) -> None:
        """Let a request that was told to come now wait before all others of its class."""
        self._expected[waiter] = flow

    def is_expected(self, waiter: W) -> bool:
        """Whether a request that waits was told to come."""
        return waiter in self._expected

    def waiting(self) -> list[tuple[Flow[W], W]]:
        """List all that wait, in no order."""
        listed = [(flow, waiter) for flow in self._flows.values() for waiter in flow.waiting]
        return listed + [(flow, waiter) for waiter, flow in self._expected.items()]

    def remove(self, flow: Flow[W], waiter: W) -> bool:
        """Take a request out; False if it is not there any more."""
        if self._expected.pop(waiter, None) is not None:
            return True
        cost = flow.waiting.pop(waiter, None)
        if cost is None:
            return False
        flow.wanted = flow.wanted - cost if flow.waiting else 0.0
        self._length -= 1
        return True

    def in_order(self) -> list[tuple[Flow[W], W]]:
        """List those that were told to come, and the next request of each flow; who is to go first is first."""
        backlogged = [flow for flow in self._flows.values() if flow.waiting]
        # Where two have had the same, who has less here is next: a newcomer is lifted to the one with the least.
        backlogged.sort(key=lambda flow: (flow.rank, flow.counter, flow.running, len(flow.waiting)))
        heads = [(flow, next(iter(flow.waiting))) for flow in backlogged]
        if not self._expected:
            return heads
        expected = [(flow, waiter) for waiter, flow in self._expected.items()]
        return sorted([*expected, *heads], key=lambda head: head[0].rank)  # which keeps the order within a class

    def served(self, flow: Flow[W], cost: float) -> None:
        """Charge a flow for a request whose turn has come."""
        flow.counter += cost / flow.weight
        flow.estimated += cost / flow.weight

    def settle(self, flow: Flow[W], cost: float, actual: float) -> None:
        """Correct what a flow was charged for a request to what it took."""
        flow.counter += (actual - cost) / flow.weight
        flow.estimated = flow.estimated - cost / flow.weight if flow.running > 1 else 0.0
        before = flow.counter - flow.estimated - actual / flow.weight
        self._served[flow.rank] = max(self._served[flow.rank], before)

    def ahead(self, flow: Flow[W]) -> int:
        """Foretell how many of those that wait go before a new request of a flow."""
        start = flow.counter + flow.wanted / flow.weight
        before = len(flow.waiting) + sum(other.rank <= flow.rank for other in self._expected.values())
        for other in self._flows.values():
            waiting = len(other.waiting)
            if not waiting or other is flow or other.rank > flow.rank:
                continue
            if other.rank < flow.rank:
                before += waiting
            elif other.counter < start:
                each = other.wanted / waiting / other.weight
                before += min(waiting, math.ceil((start - other.counter) / each)) if each else waiting
        return before

    def share(self, flow: Flow[W]) -> float:
        """Return the part of all turns that a flow would have if it went on waiting as the others do."""
        others = sum(other.weight for other in self._flows.values() if other.waiting and other is not flow)
        return flow.weight / (flow.weight + others)

    def fullest(self) -> Flow[W] | None:
        """Return whose last request has the least claim to its place: of the last class, who has the most by weight."""
        backlogged = [flow for flow in self._flows.values() if flow.waiting]
        return max(backlogged, key=lambda flow: (flow.rank, len(flow.waiting) / flow.weight), default=None)

    def _least(self, rank: int) -> float:
        """Return to what a flow is lifted that begins to wait.

        What is only estimated of the others is left out: most of it may turn out not to have been served.
        """
        counters = [
            flow.counter - flow.estimated for flow in self._flows.values() if flow.waiting and flow.rank == rank
        ]
        return min(counters) if counters else self._served[rank]
