"""What happened to jobs under faults, and whether that was as promised."""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

TERMINAL = ("complete", "failed", "cancelled", "expired")


class Seen(NamedTuple):
    """A job as somebody saw it: as it was at some moment between the question and the answer."""

    job: str
    asked: float
    """Monotonic seconds; so are the other times."""
    at: float
    """When the answer came."""
    state: str
    result: str | None


@dataclass
class History:
    """Everything that was asked, answered and done to it."""

    accepted: dict[str, float] = field(default_factory=dict)
    """When each job was acknowledged."""
    cancelled: dict[str, float] = field(default_factory=dict)
    """When each cancel was acknowledged, as one that ended the job."""
    seen: list[Seen] = field(default_factory=list)
    final: dict[str, Seen] = field(default_factory=dict)
    """Each job at the end, when nothing runs any more."""
    kills: list[float] = field(default_factory=list)
    """When workers were killed."""
    crashes: int = 0
    """Workers that ended by themselves."""
    calls: dict[str, list[float]] = field(default_factory=dict)
    """When the provider was called for each job."""

    @property
    def ended(self) -> dict[str, float]:
        """When each job was first seen to have ended."""
        found: dict[str, float] = {}
        for seen in (*self.seen, *self.final.values()):
            if seen.state in TERMINAL:
                found[seen.job] = min(seen.at, found.get(seen.job, seen.at))
        return found

    @property
    def extra_calls(self) -> int:
        """Calls beyond the first of each job."""
        return sum(len(times) - 1 for times in self.calls.values())

    @property
    def reruns(self) -> list[tuple[str, float, float]]:
        """Each call but a job's first: the job, when the call before it came, and when this one did."""
        return [
            (job, before, after)
            for job, times in self.calls.items()
            for before, after in itertools.pairwise(sorted(times))
        ]

    @property
    def reruns_s(self) -> list[float]:
        """How long each of them came after the call before it: no less than after the kill that cost that one."""
        return [after - before for _, before, after in self.reruns]


def broken(history: History, *, kills_cost: int = 1, rerun_within_s: float = 45.0) -> list[str]:
    """Name each promise that was broken, by rule; ``kills_cost`` calls may be lost with each kill."""
    found = [f"lost: {job}" for job in history.accepted if job not in history.final]
    found += [f"not ended: {job} is {last.state}" for job, last in history.final.items() if last.state not in TERMINAL]
    looks: dict[str, list[Seen]] = defaultdict(list)
    for seen in (*history.seen, *history.final.values()):
        looks[seen.job].append(seen)
    for job, all_seen in looks.items():
        found += _changes(job, all_seen)
        found += _after_cancel(job, all_seen, history.cancelled.get(job))
    found += [
        f"never run: {job}"
        for job, last in history.final.items()
        if last.state == "complete" and not history.calls.get(job)
    ]
    allowed = kills_cost * len(history.kills)
    if history.extra_calls > allowed:
        found.append(f"paid twice: {history.extra_calls} extra calls after {len(history.kills)} kills")
    for job, before, after in history.reruns:
        if after - before > rerun_within_s:
            found.append(f"re-run late: {job}, {after - before:.1f} s after it had been begun")
        if not any(before < kill < after for kill in history.kills):
            found.append(f"re-run without a kill: {job}")
    return found


def _changes(job: str, looks: Sequence[Seen]) -> Iterator[str]:
    """Two ends are wrong in any order; going on after an end is, if it was asked about after the end was known."""
    ends = [seen for seen in looks if seen.state in TERMINAL]
    if len({(seen.state, seen.result) for seen in ends}) > 1:
        yield f"two ends: {job} was {' and '.join(sorted({seen.state for seen in ends}))}"
    first = min((seen.at for seen in ends), default=None)
    if first is not None and any(seen.asked > first and seen.state not in TERMINAL for seen in looks):
        yield f"open after its end: {job}"


def _after_cancel(job: str, looks: Sequence[Seen], cancelled_at: float | None) -> Iterator[str]:
    """Tell a result from a job that is merely still there: the first is what was promised never to come."""
    if cancelled_at is None:
        return
    wrong = {seen.state for seen in looks if seen.asked > cancelled_at and seen.state != "cancelled"}
    if wrong & set(TERMINAL):
        yield f"result after an acknowledged cancel: {job} is {min(wrong & set(TERMINAL))}"
    elif wrong:
        yield f"open after an acknowledged cancel: {job} is {min(wrong)}"
