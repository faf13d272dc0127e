"""The smallest call to a provider that proves it, outside everything that concerns callers."""

import asyncio
from collections.abc import Callable, Mapping

from service.accounting.prices import Price
from service.domain.clock import Clock, Deadline
from service.domain.generation import Completion, GenerationRequest, Message, Usage
from service.domain.limits import NANO
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
    UpstreamUnavailable,
    mildest,
)
from service.providers.base import Provider, ProviderKey
from service.telemetry.metrics import Metrics

PROBE_TOKENS = 16
"""Upper bound of a probe's answer. One token is refused, or falsely passed, by models that reason first
(BerriAI/litellm issue 26987)."""
PROBE_TIMEOUT_S = 5.0
"""Seconds for the whole check, whatever keys are tried."""


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

    def __init__(
        self,
        *,
        providers: Mapping[str, Provider],
        metrics: Metrics,
        clock: Clock,
        price_at: Callable[[Route], Price | None] = lambda _: None,
    ) -> None:
        self._providers = providers
        self._metrics = metrics
        self._clock = clock
        self._price_at = price_at

    async def ask(self, route: Route) -> Probe:
        """Ask for one answer, with another key where one is refused: it is the set of them that is checked.

        Takes :data:`PROBE_TIMEOUT_S` at most, and raises nothing but defects.
        """
        began_at = self._clock.monotonic()
        reason: str | None = None
        try:
            completion = await self._call(route)
        except ServiceError as error:
            outcome, reason = outcome_of(error), _reason(error)
        else:
            outcome = Outcome.OK
            self._count(route, completion.usage)
        self._metrics.probes.labels(route.provider, outcome.value).inc()
        return Probe(outcome, reason, self._clock.monotonic() - began_at)

    def _count(self, route: Route, usage: Usage) -> None:
        self._metrics.probe_tokens.labels(route.provider).inc(usage.input_tokens + usage.output_tokens)
        price = self._price_at(route)
        if price is not None:
            self._metrics.probe_cost.labels(route.provider).inc(price.nano_usd(usage) / NANO)

    async def _call(self, route: Route) -> Completion:
        provider = self._providers.get(route.provider)
        if provider is None:
            raise UpstreamUnavailable("the provider was taken out of the configuration", provider=route.provider)
        # No temperature: models that reason refuse any but their own.
        request = GenerationRequest(
            model=route.model, messages=(Message.of_text("user", "ping"),), max_tokens=PROBE_TOKENS
        )
        deadline = Deadline.after(PROBE_TIMEOUT_S, self._clock)
        tried: set[str] = set()
        refusals: list[UpstreamMisconfigured] = []
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                while (key := _untried(provider, route, tried, refusals)) is not None:
                    tried.add(key.fingerprint)
                    try:
                        return await provider.complete(request, upstream_model=route.model, deadline=deadline, key=key)
                    except UpstreamMisconfigured as error:
                        if not error.refuses_key:
                            raise
                        refusals.append(error)
        except TimeoutError:
            raise UpstreamTimeout(
                f"the provider did not answer within {PROBE_TIMEOUT_S:g} s", provider=route.provider
            ) from None
        raise mildest(refusals)


def _untried(
    provider: Provider, route: Route, tried: set[str], refusals: list[UpstreamMisconfigured]
) -> ProviderKey | None:
    """Return a key that can be asked with; None if all were refused, which ``refusals`` say better than the ring."""
    try:
        return provider.keys.take(route.model, lambda key: key.fingerprint not in tried)
    except UpstreamMisconfigured:
        if not refusals:
            raise
        return None


def _reason(error: ServiceError) -> str:
    """Say why, to whoever may ask ``/ready``: not in the provider's own words, which may be about anything."""
    if isinstance(error, UpstreamRejected):
        code = "" if error.upstream_code is None else f" ({error.upstream_code})"
        return f"{error.code}: the provider refuses the smallest call with status {error.upstream_status}{code}"
    return f"{error.code}: {error.message}"
