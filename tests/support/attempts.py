"""Attempts over fake providers: without retries and breakers unless a test wants them, and without real waiting."""

from collections.abc import Callable, Mapping
from typing import Any

from service.admission.memory import MemoryLimiter
from service.config import AdmissionSettings, ProviderSettings, ResilienceSettings
from service.domain.clock import Clock, ManualClock
from service.engine.attempts import Attempts
from service.providers.base import Provider
from service.queueing.work import Work
from service.telemetry.metrics import Metrics

PLAIN: Mapping[str, Any] = {"retries": {"max_attempts": 1}, "breaker": {"enabled": False}}
"""One attempt at each route, and nothing remembered."""


WORK = Work("caller", "interactive", 1.0, 10, 10, ticket=lambda: "ticket")
"""What some request asks."""


def provider_settings(**sections: Any) -> ProviderSettings:
    """Make the settings of one provider."""
    return ProviderSettings.model_validate({"kind": "openai", **sections})


def attempts_over(
    providers: Mapping[str, Provider],
    *,
    metrics: Metrics,
    clock: Clock,
    sections: Mapping[str, Mapping[str, Any]] | None = None,
    resilience: Mapping[str, Any] | None = None,
    admission: Mapping[str, Any] | None = None,
    waits: list[float] | None = None,
    random: Callable[[], float] = lambda: 0.5,
) -> Attempts:
    """Make attempts; ``sections`` are the settings by provider, ``PLAIN`` where left out.

    A wait moves a manual clock, and is appended to ``waits``.
    """

    async def sleep(seconds: float) -> None:
        if waits is not None:
            waits.append(seconds)
        if isinstance(clock, ManualClock):
            clock.advance(seconds)

    return Attempts(
        providers=providers,
        settings={name: provider_settings(**(sections or {}).get(name, PLAIN)) for name in providers},
        resilience=ResilienceSettings.model_validate(resilience or {}),
        admission=AdmissionSettings.model_validate(admission or {}),
        limiter=MemoryLimiter(clock=clock),
        metrics=metrics,
        clock=clock,
        sleep=sleep,
        random=random,
    )
