"""Who is next: by class, and within a class the principal that has had the least, by its weight.

Virtual token counters (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024): each principal has a
counter of the tokens that it was served; the backlogged one with the least is next; who comes back from idleness is
lifted to the others, so that nobody saves up. The difference between two that are backlogged stays bounded.
"""

import math
from dataclasses import dataclass, field
from typing import Final, Generic, NamedTuple, TypeVar

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


class _Asked(NamedTuple):
    """What a request that waits asks for."""

    cost: float
    """Virtual tokens."""
    kind: str
    """What is needed for its turn: requests of one kind wait for the same."""


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
    waiting: dict[W, _Asked] = field(default_factory=dict)
    """In order."""
    kinds: dict[str, int] = field(default_factory=dict)
    """How many of each kind wait."""
    wanted: float = 0.0
    """What those that wait cost together."""
    booked_until: float = -math.inf
    """Monotonic seconds at which the last of its requests that were refused is to come again."""
    pins: int = 0
    """How many hold it now, so that it must not be forgotten."""

    @property
    def is_idle(self) -> bool:
        """Whether it has nothing here."""
        return not self.waiting and not self.running


class FairQueue(Generic[W]):
    """Requests that wait for one provider."""

    def __init__(self) -> None:
        self._flows: dict[tuple[str, int], Flow[W]] = {}
        self._expected: dict[W, tuple[Flow[W], str]] = {}
        """Who was told to come at this time, in order, and of which kind."""
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
                self._flows = {key: flow for key, flow in self._flows.items() if flow.pins or not flow.is_idle}
            flow = self._flows[principal, rank] = Flow(principal, rank, weight)
        flow.weight = weight
        if flow.is_idle:
            flow.counter = max(flow.counter, self._least(rank))
        return flow

    def add(self, flow: Flow[W], waiter: W, cost: float, kind: str) -> None:
        """Let a request wait behind the others of its flow."""
        if not flow.waiting and flow.running:
            flow.counter = max(flow.counter, self._least(flow.rank))
        flow.waiting[waiter] = _Asked(cost, kind)
        flow.kinds[kind] = flow.kinds.get(kind, 0) + 1
        flow.wanted += cost
        self._length += 1

    def add_expected(self, flow: Flow[W], waiter: W, kind: str) -> None:
        """Let a request that was told to come now wait before all others of its class."""
        self._expected[waiter] = (flow, kind)

    def is_expected(self, waiter: W) -> bool:
        """Whether a request that waits was told to come."""
        return waiter in self._expected

    def waiting(self) -> list[tuple[Flow[W], W]]:
        """List all that wait, in no order."""
        listed = [(flow, waiter) for flow in self._flows.values() for waiter in flow.waiting]
        return listed + [(flow, waiter) for waiter, (flow, _) in self._expected.items()]

    def remove(self, flow: Flow[W], waiter: W) -> bool:
        """Take a request out; False if it is not there any more."""
        if self._expected.pop(waiter, None) is not None:
            return True
        asked = flow.waiting.pop(waiter, None)
        if asked is None:
            return False
        flow.wanted = flow.wanted - asked.cost if flow.waiting else 0.0
        flow.kinds[asked.kind] -= 1
        if not flow.kinds[asked.kind]:
            del flow.kinds[asked.kind]
        self._length -= 1
        return True

    def in_order(self) -> list[tuple[Flow[W], W]]:
        """List those that were told to come, and the next of each flow and kind; who is to go first is first."""
        backlogged = [flow for flow in self._flows.values() if flow.waiting]
        # Where two have had the same, who has less here is next: a newcomer is lifted to the one with the least.
        backlogged.sort(key=lambda flow: (flow.rank, flow.counter, flow.running, len(flow.waiting)))
        heads = [(flow, waiter) for flow in backlogged for waiter in _next_of(flow)]
        if not self._expected:
            return heads
        expected = [(flow, waiter) for waiter, (flow, _) in self._expected.items()]
        return sorted([*expected, *heads], key=lambda head: head[0].rank)  # which keeps the order within a class

    def served(self, flow: Flow[W], cost: float) -> float:
        """Charge a flow for a request whose turn has come; return the charge, to be settled when its call is over."""
        charge = cost / flow.weight
        flow.counter += charge
        flow.estimated += charge
        return charge

    def settle(self, flow: Flow[W], charge: float, actual: float) -> None:
        """Correct what a flow was charged for a request to what it took, in virtual tokens."""
        took = actual / flow.weight
        flow.counter += took - charge
        flow.estimated = flow.estimated - charge if flow.running > 1 else 0.0
        before = flow.counter - flow.estimated - took
        self._served[flow.rank] = max(self._served[flow.rank], before)

    def ahead(self, flow: Flow[W], kind: str | None = None) -> int:
        """Foretell how many of those that wait, of a kind or of all, go before a new request of a flow."""
        before = sum(
            other.rank <= flow.rank and kind in {None, its_kind} for other, its_kind in self._expected.values()
        )
        own = _count(flow, kind)
        before += own
        start = flow.counter
        if own:
            start += flow.wanted / flow.weight * own / len(flow.waiting)
        for other in self._flows.values():
            waiting = _count(other, kind)
            if not waiting or other is flow or other.rank > flow.rank:
                continue
            if other.rank < flow.rank:
                before += waiting
            elif other.counter < start:
                each = other.wanted / len(other.waiting) / other.weight
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


def _count(flow: Flow[W], kind: str | None) -> int:
    return len(flow.waiting) if kind is None else flow.kinds.get(kind, 0)


def _next_of(flow: Flow[W]) -> list[W]:
    """List the first request of each kind, in order."""
    if len(flow.kinds) == 1:
        return [next(iter(flow.waiting))]
    found: dict[str, W] = {}
    for waiter, asked in flow.waiting.items():
        if asked.kind not in found:
            found[asked.kind] = waiter
            if len(found) == len(flow.kinds):
                break
    return [*found.values()]
