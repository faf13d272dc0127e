"""What a vendor says is left of its limits, in the headers of its answers, and what must be left of that by now."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

Resource = Literal["requests", "tokens", "input_tokens", "output_tokens"]
RESOURCES: tuple[Resource, ...] = ("requests", "tokens", "input_tokens", "output_tokens")
PARTS = frozenset({"input_tokens", "output_tokens"})
"""What a call's tokens part into."""

LAPSE_S = 60.0
"""After so long without news nothing is known: a vendor's bucket of a minute would be full again."""
ASK_S = 5.0
"""How long others wait for what the first call after that hears, where the limit was used up."""
LISTEN_S = 0.25
"""How soon they look whether it has heard something."""
WAY_S = 1.0
"""How long a call may be on its way to the vendor; so late may others pass it, too."""
MINUTE_S = 60.0
PERIOD_SLACK_S = 5.0
"""By how much a reset may be later than a minute's bucket would have it: it is rounded, and was so a while ago."""
MAX_DIGITS = 12
"""More is no limit of this world, and no number to calculate with."""
MAX_RESET_S = 32 * 86_400.0
"""The longest period of limits that vendors have is a month."""
CRUMB = 1e-3
"""Of a request or a token: what sums of fractions may be off by."""


class Left(NamedTuple):
    """One limit, as the headers of one answer have it."""

    resource: Resource
    limit: int
    """At least 1."""
    remaining: int
    """From 0 to the limit."""
    reset_s: float | None = None
    """Seconds until all of it is there, if nothing else is sent."""
    share: float = 1.0
    """Which part of a call's tokens counts for it."""


class Names(NamedTuple):
    """The headers of one limit."""

    resource: Resource
    limit: str
    remaining: str
    reset: str | None
    """A duration as Go writes it; None where it is not to be read."""


Reader = Callable[[Mapping[str, str]], tuple[Left, ...]]
"""Reads what headers say is left. Never raises: what cannot be read, or makes no sense, is not there."""

OPENAI_NAMES = tuple(
    Names(kind, f"x-ratelimit-limit-{kind}", f"x-ratelimit-remaining-{kind}", f"x-ratelimit-reset-{kind}")
    for kind in ("requests", "tokens")
)
ANTHROPIC_NAMES = tuple(
    Names(resource, f"anthropic-ratelimit-{name}-limit", f"anthropic-ratelimit-{name}-remaining", None)
    for resource, name in zip(RESOURCES, ("requests", "tokens", "input-tokens", "output-tokens"), strict=True)
)
"""The reset is an instant by the vendor's clock, which may not be ours; and all of its limits are a minute's."""

_GO_UNITS = {
    "h": 3600.0,
    "m": 60.0,
    "s": 1.0,
    "ms": 1e-3,
    "us": 1e-6,
    "\u00b5s": 1e-6,
    "\u03bcs": 1e-6,
    "ns": 1e-9,
}
_GO_PART = re.compile(r"([0-9]{1,12}(?:\.[0-9]{0,12})?|\.[0-9]{1,12})(h|ms|m|s|us|\u00b5s|\u03bcs|ns)")
_GO = re.compile(f"(?:{_GO_PART.pattern})+")


def go_duration_s(text: str) -> float | None:
    """Read a duration as Go writes it, such as ``12ms``, ``1.5s`` and ``6m0s``; None for anything else.

    A number alone is none: servers that send one mean seconds, or a date.
    """
    if not text or _GO.fullmatch(text) is None:
        return None
    return sum([float(number) * _GO_UNITS[unit] for number, unit in _GO_PART.findall(text)])


def read_openai(headers: Mapping[str, str]) -> tuple[Left, ...]:
    """See :data:`Reader`; for OpenAI's ``x-ratelimit-*`` (OpenAI, "Rate limits", as of 2026-11).

    A limit that is not above 0 is unknown: Azure has such ones.
    """
    if "x-ratelimit-limit-requests" not in headers and "x-ratelimit-limit-tokens" not in headers:
        return ()  # as of most servers with this API; the shorter the better
    return _read(headers, OPENAI_NAMES)


def read_anthropic(headers: Mapping[str, str]) -> tuple[Left, ...]:
    """See :data:`Reader`; for Anthropic's ``anthropic-ratelimit-*`` (Anthropic, "Rate limits", as of 2026-11).

    Nobody knows beforehand how a call's tokens part into input and output: they count for each as its limit is large.
    """
    if "anthropic-ratelimit-requests-limit" not in headers and "anthropic-ratelimit-tokens-limit" not in headers:
        return ()
    found = _read(headers, ANTHROPIC_NAMES)
    parts = sum([left.limit for left in found if left.resource in PARTS])
    if not parts:
        return found
    return tuple(
        [
            Left(left.resource, left.limit, left.remaining, left.reset_s, left.limit / parts)
            if left.resource in PARTS
            else left
            for left in found
        ]
    )


def _read(headers: Mapping[str, str], names: tuple[Names, ...]) -> tuple[Left, ...]:
    found: list[Left] = []
    for resource, limit_name, remaining_name, reset_name in names:
        text = headers.get(limit_name)
        if text is None:
            continue
        limit, remaining = _whole(text), _whole(headers.get(remaining_name))
        if not limit or remaining is None:
            continue
        reset = None if reset_name is None else headers.get(reset_name)
        reset_s = None if reset is None else go_duration_s(reset)
        if reset_s is not None and reset_s > MAX_RESET_S:
            reset_s = None
        found.append(Left(resource, limit, min(remaining, limit), reset_s))
    return tuple(found)


def _whole(text: str | None) -> int | None:
    if text is None or len(text) > MAX_DIGITS or not (text.isascii() and text.isdigit()):
        return None
    return int(text)


class Mark(NamedTuple):
    """When a call was sent, among all those with its key to its model."""

    allowance: "Allowance"
    requests: int
    """How many had begun by then, itself among them; later calls have larger ones."""
    tokens: int
    """How many tokens they were to take together."""
    sent_at: float
    """Monotonic seconds."""


@dataclass(slots=True, eq=False)
class _Bucket:
    """One limit of the vendor's, as it must stand by now."""

    limit: int
    per_s: float
    """How much comes back in a second, until it is full."""
    level: float
    """What was left; below 0 where more was sent than there was."""
    at: float
    """When it was."""
    share: float
    heard: Mark
    """The latest call whose headers told of it."""
    heard_at: float
    ratio: float
    """Of the limit, what these headers said is left."""
    asked_at: float | None = None
    """When the first call after the lapse began."""

    def holds_s(self, now: float) -> float:
        """Return for how long it is to be believed at least: until it lapses, and then while the first call asks."""
        lapses_s = self.heard_at + LAPSE_S - now
        if lapses_s > 0:
            return lapses_s
        return 0.0 if self.asked_at is None else min(LISTEN_S, max(0.0, self.asked_at + ASK_S - now))

    @property
    def told_until(self) -> float:
        """When it would be full again, if nothing else is sent; the word is good for a while in any case."""
        return max(self.heard_at + LAPSE_S, self.at + (self.limit - self.level) / self.per_s)

    def level_at(self, now: float) -> float:
        return min(self.limit, self.level + (now - self.at) * self.per_s)

    def take(self, amount: float, now: float) -> None:
        self.level = self.level_at(now) - amount
        self.at = now


class Allowance:
    """What one key may still send to one model: the vendor's last word, less what was sent since, and what comes back.

    It says too little rather than too much. When there was no news for :data:`LAPSE_S`, one call asks, and the others
    wait for its answer where nothing was left; after :data:`ASK_S` without one it says nothing at all.
    """

    __slots__ = ("_buckets", "_requests", "_tokens")

    def __init__(self) -> None:
        self._requests = 0
        self._tokens = 0
        self._buckets: dict[Resource, _Bucket] = {}

    def begin(self, tokens: int, now: float) -> None:
        """Take a call, and the tokens that it is estimated to take, from what is left."""
        self._requests += 1
        self._tokens += tokens
        for resource, bucket in self._buckets.items():
            bucket.take(1.0 if resource == "requests" else tokens * bucket.share, now)
            if bucket.asked_at is None and now - bucket.heard_at >= LAPSE_S:
                bucket.asked_at = now

    def give_back(self, tokens: int, now: float) -> None:
        """Undo the beginning of a call that is not sent."""
        # It stays counted: who was sent before it shall hear of too much since rather than of too little.
        for resource, bucket in self._buckets.items():
            bucket.take(-1.0 if resource == "requests" else -tokens * bucket.share, now)
            bucket.asked_at = None

    def mark(self, now: float) -> Mark:
        """Remember that a call that was begun is sent now."""
        return Mark(self, self._requests, self._tokens, now)

    def hear(self, found: tuple[Left, ...], mark: Mark, now: float) -> None:
        """Take the vendor's word, from the headers of the call that was sent at the mark."""
        flight_s = now - mark.sent_at
        if flight_s >= LAPSE_S:
            return
        for left in found:
            known = self._buckets.get(left.resource)
            if known is not None and now - known.heard_at >= LAPSE_S:
                known = None
            is_news = known is None or mark.requests >= known.heard.requests
            if not is_news and flight_s > WAY_S:
                continue
            since = mark if known is None or is_news else known.heard
            sent = self._requests - since.requests
            amount = float(sent) if left.resource == "requests" else (self._tokens - since.tokens) * left.share
            per_s = refill_per_s(left)
            # Vendors look at their buckets when a call comes: since then some came back, and some was sent. Where one
            # looks when it answers, no more than it says can be there.
            back = min(left.limit, left.remaining + per_s * max(0.0, flight_s - WAY_S))
            level = min(left.remaining, back - amount)
            if known is not None and not is_news:
                level = min(level, known.level_at(now))
            self._buckets[left.resource] = _Bucket(
                left.limit, per_s, level, now, left.share, since, now, left.remaining / left.limit
            )

    def wait_s(self, tokens: int, keep: float, now: float) -> float:
        """Return seconds until one more call may be sent, 0 for now; never more than until the word lapses.

        A call that takes more tokens than there can ever be needs all there can be. ``keep`` is the part of each limit
        that must be left after it.
        """
        wait_s = 0.0
        for resource, bucket in self._buckets.items():
            amount = 1.0 if resource == "requests" else tokens * bucket.share
            missing = min(amount + keep * bucket.limit, bucket.limit) - bucket.level_at(now)
            if missing > CRUMB:
                wait_s = max(wait_s, min(missing / bucket.per_s, bucket.holds_s(now)))
        return wait_s

    def is_known(self, now: float) -> bool:
        """Whether there was news lately."""
        return any(now - bucket.heard_at < LAPSE_S for bucket in self._buckets.values())

    def ratios(self, now: float) -> Mapping[Resource, float]:
        """Return which part of each limit was left, by the vendor's last word, where that is not over by now."""
        return {resource: bucket.ratio for resource, bucket in self._buckets.items() if now < bucket.told_until}


def refill_per_s(left: Left) -> float:
    """Return how much of a limit comes back in a second.

    Limits are a minute's, but for those of a day that small accounts have. The reset tells: it is when all is back.
    """
    used = left.limit - left.remaining
    minutely = left.limit / MINUTE_S
    if used and left.reset_s is not None and left.reset_s > 2 * used / minutely + PERIOD_SLACK_S:
        return used / left.reset_s
    return minutely
