"""Whether this process should get traffic: a minimal LLM call, made in the background and never by a probe itself."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from service.config import ReadinessSettings
from service.domain.clock import Clock
from service.domain.generation import GenerationRequest, Message
from service.domain.principal import Principal, RequestContext
from service.engine.drain import Drain
from service.engine.generation import GenerationService
from service.errors import ServiceError, UpstreamMisconfigured
from service.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

PROBE_TOKENS = 16
"""Upper bound of a probe's answer. One token is refused, or falsely passed, by models that reason first
(BerriAI/litellm issue 26987)."""
RETRY_INTERVAL_S = 5.0
"""Seconds between probes while the last one failed, if the set interval is not shorter."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What ``/ready`` says."""

    ready: bool
    status: Literal["starting", "ready", "degraded", "unready"]
    reason: str | None = None
    """Why not simply ready; shown to whoever may ask, so it holds nothing secret."""


READY = Verdict(ready=True, status="ready")
DRAINING = Verdict(ready=False, status="unready", reason="draining")


def _reason(error: ServiceError) -> str:
    return f"{error.code}: {error.message}"


def _degraded(error: ServiceError) -> Verdict:
    # An outage of a shared provider would un-ready every pod at once, and 503 with a cause beats no endpoint.
    return Verdict(ready=True, status="degraded", reason=_reason(error))


class ReadinessCheck:
    """Keeps the verdict in memory, so that asking for it costs nothing and a probe storm stays with us."""

    def __init__(
        self,
        *,
        generation: GenerationService,
        settings: ReadinessSettings,
        model: str | None,
        drain: Drain,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._generation = generation
        self._settings = settings
        self._model = settings.model or model
        self._drain = drain
        self._metrics = metrics
        self._clock = clock
        self._refreshed_at: float | None = None
        self._probing = settings.mode in ("key", "strict") and self._model is not None
        self._verdict = Verdict(ready=False, status="starting") if self._probing else READY
        self._set(self._verdict)

    @property
    def verdict(self) -> Verdict:
        """What to answer now."""
        if not self._drain.ready:
            return DRAINING
        failure = self._generation.last_failure
        if self._settings.mode == "passive" and failure is not None:
            return _degraded(failure)
        return self._verdict

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep the verdict fresh while the context is open."""
        if not self._probing:
            yield
            return
        task = asyncio.create_task(self._keep_fresh(), name="readiness")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def refresh(self) -> None:
        """Make one minimal call, unless real traffic was answered since the last look, and keep the verdict."""
        evidence = self._generation.last_success_at
        if evidence is not None and self._refreshed_at is not None and evidence > self._refreshed_at:
            self._set(READY)
        else:
            self._set(await self._probe())
        self._refreshed_at = self._clock.monotonic()

    async def _probe(self) -> Verdict:
        if self._model is None:
            raise AssertionError("without a model there is no probing")
        request = GenerationRequest(
            model=self._model, messages=(Message.of_text("user", "ping"),), max_tokens=PROBE_TOKENS, temperature=0.0
        )
        context = RequestContext(request_id="readiness", principal=Principal("readiness"))
        try:
            await self._generation.complete(request, context)
        except ServiceError as error:
            return self._verdict_on(error)
        return READY

    def _verdict_on(self, error: ServiceError) -> Verdict:
        succeeded_before = self._generation.last_success_at is not None
        refused = isinstance(error, UpstreamMisconfigured)
        if self._settings.mode == "strict" or (refused and not succeeded_before):
            return Verdict(ready=False, status="unready", reason=_reason(error))
        return _degraded(error)

    def _set(self, verdict: Verdict) -> None:
        if verdict != self._verdict:
            logger.info("readiness changed", extra={"status": verdict.status, "reason": verdict.reason})
        self._verdict = verdict
        self._metrics.ready.set(1 if verdict.ready and self._drain.ready else 0)

    async def _keep_fresh(self) -> None:
        while True:
            try:
                await self.refresh()
            except Exception:  # the outer edge of the task: a defect here must not freeze the verdict for ever
                logger.exception("readiness probe failed by a defect")
                self._metrics.unhandled_errors.labels("readiness").inc()
            healthy = self.verdict.status == "ready"
            await asyncio.sleep(
                self._settings.interval_s if healthy else min(self._settings.interval_s, RETRY_INTERVAL_S)
            )
