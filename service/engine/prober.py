"""The smallest call to a provider that proves it, outside everything that concerns callers."""

import asyncio
from collections.abc import Mapping

from service.domain.clock import Clock, Deadline
from service.domain.generation import Completion, GenerationRequest, Message
from service.domain.probe import Outcome, Probe
from service.engine.catalogue import Route
from service.errors import (
    InvalidRequest,
    ServiceError,
    UpstreamMisconfigured,
    UpstreamOverloaded,
    UpstreamRejected,
    UpstreamThrottled,
    UpstreamTimeout,
)
from service.providers.base import Provider
from service.telemetry.metrics import Metrics

PROBE_TOKENS = 16
"""Upper bound of a probe's answer. One token is refused, or falsely passed, by models that reason first
(BerriAI/litellm issue 26987)."""
PROBE_TIMEOUT_S = 5.0
"""Seconds for the whole call."""


def outcome_of(error: ServiceError) -> Outcome:
    """Tell what a failed call says of the provider and of our configuration."""
    match error:
        case UpstreamMisconfigured():
            return _misconfigured(error)
        case UpstreamRejected() | InvalidRequest():
            return Outcome.REQUEST_REFUSED
        case UpstreamThrottled() | UpstreamOverloaded():
            return Outcome.THROTTLED
        case UpstreamTimeout():
            return Outcome.TIMEOUT
        case _:
            return Outcome.UNAVAILABLE


def _misconfigured(error: UpstreamMisconfigured) -> Outcome:
    if error.refused == "funds":
        return Outcome.QUOTA
    # What was never sent has no status: there is no key that could be.
    if error.refused == "key" or error.upstream_status is None:
        return Outcome.KEY_REFUSED
    return Outcome.REQUEST_REFUSED


class Prober:
    """Asks a provider directly: no retry, no other route, no limit, and no user who is billed for it."""

    def __init__(self, *, providers: Mapping[str, Provider], metrics: Metrics, clock: Clock) -> None:
        self._providers = providers
        self._metrics = metrics
        self._clock = clock

    async def ask(self, route: Route) -> Probe:
        """Make one call. Takes :data:`PROBE_TIMEOUT_S` at most, and raises nothing but defects."""
        began_at = self._clock.monotonic()
        reason: str | None = None
        try:
            completion = await self._call(route)
        except ServiceError as error:
            outcome, reason = outcome_of(error), f"{error.code}: {error.message}"
        else:
            outcome = Outcome.OK
            usage = completion.usage
            self._metrics.probe_tokens.labels(route.provider).inc(usage.input_tokens + usage.output_tokens)
        self._metrics.probes.labels(route.provider, outcome.value).inc()
        return Probe(outcome, reason, self._clock.monotonic() - began_at)

    async def _call(self, route: Route) -> Completion:
        # No temperature: models that reason refuse any but their own.
        request = GenerationRequest(
            model=route.model, messages=(Message.of_text("user", "ping"),), max_tokens=PROBE_TOKENS
        )
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                return await self._providers[route.provider].complete(
                    request, upstream_model=route.model, deadline=Deadline.after(PROBE_TIMEOUT_S, self._clock)
                )
        except TimeoutError:
            raise UpstreamTimeout(
                f"the provider did not answer within {PROBE_TIMEOUT_S:g} s", provider=route.provider
            ) from None
