"""A check of a provider: what is checked, what came of it, and what a fleet knows of it."""

import math
from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """What a provider made of the smallest call. A closed set, so it serves as a metric label."""

    OK = "ok"
    KEY_REFUSED = "key_refused"
    """No key, or one that is not taken: nobody's traffic will pass."""
    REQUEST_REFUSED = "request_refused"
    """The model or the address is not known, or the call is not understood: a mistake in the configuration."""
    QUOTA = "quota"
    """The account is out of funds."""
    THROTTLED = "throttled"
    UNAVAILABLE = "unavailable"
    TIMEOUT = "timeout"

    @property
    def is_transient(self) -> bool:
        """Whether it may pass by itself within seconds."""
        return self in {Outcome.THROTTLED, Outcome.UNAVAILABLE, Outcome.TIMEOUT}


@dataclass(frozen=True, slots=True)
class Subject:
    """What is checked. Another key, address or model makes another subject, of which nothing is known yet."""

    provider: str
    """The name in the configuration."""
    model: str
    """The provider's name for the model that is asked."""
    fingerprint: str
    """Of the set of keys, and the address; tells nothing of either."""


@dataclass(frozen=True, slots=True)
class Probe:
    """The result of one check."""

    outcome: Outcome
    reason: str | None = None
    """Why it is not ``ok``; shown to whoever may ask, so it holds nothing secret."""
    latency_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Evidence:
    """What real traffic showed last."""

    age_s: float
    """Seconds ago."""
    refused: bool = False
    """Whether it was a refusal of the key, and not an answer."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What the fleet knows of a subject at the moment of looking."""

    probe: Probe | None = None
    """The last check."""
    probe_age_s: float = math.inf
    failures: int = 0
    """Checks that have failed since the last one that did not."""
    evidence: Evidence | None = None
    """The last that real traffic of any process showed."""
    claimed: bool = False
    """Whether the caller holds the lease now: it is to make the check, and to publish what came of it."""
