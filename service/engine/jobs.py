"""Background jobs: accepting, telling, cancelling, and doing one; where they are kept is a port."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from service.auth.base import Authenticator
from service.domain.estimates import input_size, tokens_in
from service.domain.generation import Choice, Completion, FinishReason, GenerationRequest, Usage
from service.domain.idempotency import IdempotencyKey
from service.domain.job import (
    DEADLINE_PASSED,
    Beat,
    BeatAnswer,
    DueWebhook,
    GoneJob,
    Job,
    JobError,
    JobOutcome,
    JobStatus,
    QueueDepth,
    WebhookStatus,
)
from service.domain.principal import Principal, Priority, RequestContext
from service.domain.trace import Span, Tracing
from service.engine.generation import GenerationService
from service.engine.job_span import PutBack, accepted, run_of, tell_outcome, trace_of
from service.errors import (
    CircuitOpen,
    JobGone,
    JobNotFound,
    Overloaded,
    PermissionDenied,
    RateLimited,
    ServiceError,
    StoreUnavailable,
    Unauthenticated,
    UpstreamError,
    UpstreamThrottled,
)
from service.telemetry import semconv
from service.telemetry.metrics import Metrics

_PASSING = (Overloaded, CircuitOpen, UpstreamThrottled, RateLimited, StoreUnavailable)
"""What a job waits for, however long it takes: it has time."""
WAIT_S = 1.0
"""How long a job waits where nobody says how long."""
WAIT_MIN_S = 0.25
"""It waits at least so long the first time, and twice as long each time after: asking in vain is work too."""
WAIT_MAX_S = 60.0
"""It asks again after this long in any case: limits change."""
ID_PREFIX = "job_"
KEYED_DIGITS = 40
"""Of a key's digest: 160 bits, which nobody guesses who does not know the key."""
SETBACKS_S = (5.0, 30.0, 120.0, 600.0)
"""How long a job waits after each failure of its providers, retries and other routes included, before it fails;
also where this process does not know what the one that accepted it knew, by a newer configuration."""
TRIES_MAX = 3
"""Calls of one attempt that broke off after their first content, where nobody keeps what came."""


T = TypeVar("T")


class JobStore(Protocol):
    """Where jobs wait, and what remembers them. Every method raises ``StoreUnavailable`` where it does not answer."""

    async def submit(self, job: Job) -> Job:
        """Keep a new job, once however often it is submitted; return it as it stands.

        Raises ``Overloaded`` when too many wait, ``IdempotencyMismatch`` where another request has its id.
        """
        ...

    async def get(self, job_id: str, *, watching: bool = False) -> Job | GoneJob | None:
        """Return the job as it stands, or None for an unknown one.

        With ``watching`` whoever works on it is told that somebody looks.
        """
        ...

    async def cancel(self, job_id: str) -> Job | GoneJob | None:
        """End a job that is not over yet; return it as it stands then. Nothing can finish it afterwards."""
        ...

    async def claim(self, count: int) -> Sequence[Job]:
        """Begin up to so many of those that are next; put back before what its worker left behind."""
        ...

    async def beat(self, beats: Sequence[Beat]) -> BeatAnswer:
        """Renew the leases of these attempts."""
        ...

    async def finish(self, job: Job, outcome: JobOutcome) -> bool:
        """Write how an attempt ended, once, however often it is said.

        False where the job was not this attempt's any more, and nothing has changed.
        """
        ...

    async def release(self, job: Job, *, wait_s: float = 0.0, is_setback: bool = False) -> bool:
        """Put a job back, before all that wait, without an attempt.

        With ``wait_s`` it is not begun before they are over, and then waits behind what its caller has waiting.
        ``is_setback`` counts one of ``Job.setbacks``.
        """
        ...

    async def depth(self) -> QueueDepth:
        """Return how much there is to do."""
        ...

    async def due_webhooks(self, count: int, hold_s: float) -> Sequence[DueWebhook]:
        """Take up to so many jobs of whose end a server is to be told; nobody else has them for ``hold_s``."""
        ...

    async def settle_webhook(self, job_id: str, status: WebhookStatus, *, wait_s: float = 0.0) -> None:
        """Note what became of an attempt; while it is ``pending``, the next comes when ``wait_s`` are over."""
        ...


class JobNews:
    """What callers did in this process, so that a worker beside them need not look for it."""

    def __init__(self) -> None:
        self.submitted = asyncio.Event()
        self.cancelled = asyncio.Event()


class JobRoute(Protocol):
    """What a job can ask for: a route of the API that would answer at once."""

    def read(self, body: bytes) -> GenerationRequest:
        """Say the body in the domain's words; raise ``InvalidRequest``."""
        ...

    def write(self, completion: Completion, job: Job) -> bytes:
        """Return what the route would have answered, as JSON."""
        ...


class JobService:
    """What callers can do with jobs. A job belongs to the principal that submitted it."""

    def __init__(
        self,
        *,
        store: JobStore | None,
        routes: Mapping[str, JobRoute],
        generation: GenerationService,
        metrics: Metrics,
    ) -> None:
        """Without a ``store``, every call raises ``StoreUnavailable``."""
        self._given = store
        self._metrics = metrics
        self._routes = routes
        self._generation = generation
        self.news = JobNews()

    @property
    def _store(self) -> JobStore:
        if self._given is None:
            raise StoreUnavailable("background jobs need a shared store, which outlives this process: set redis.url")
        return self._given

    async def submit(
        self,
        route: str,
        body: bytes,
        context: RequestContext,
        *,
        priority: Priority | None = None,
        deadline_s: float | None = None,
        webhook: str | None = None,
        key: IdempotencyKey | None = None,
    ) -> Job:
        """Accept what ``route`` would be sent, to be done later; once for each ``key``.

        Raises ``IdempotencyMismatch``, ``InvalidRequest``, ``ModelNotFound``, ``Overloaded`` or ``StoreUnavailable``.
        """
        request = self._routes[route].read(body)
        self._generation.check_model(request.model, context)
        principal = context.principal
        job = Job(
            id=ID_PREFIX + (secrets.token_urlsafe(18) if key is None else key.digest[:KEYED_DIGITS]),
            principal=principal.name,
            route=route,
            body=body,
            priority="batch" if "batch" in (priority, principal.priority) else "interactive",
            weight=principal.weight,
            deadline_s=deadline_s,
            webhook=webhook,
            webhook_status=None if webhook is None else "pending",
            fingerprint="" if key is None else key.fingerprint,
        )
        with accepted(context, semconv.JOBS, job.id) as traceparent:
            traced = replace(job, traceparent=traceparent)
            kept = await once_more(lambda: self._store.submit(traced))
        if kept.is_new:  # with a key it may have been there before
            self._metrics.jobs_enqueued.labels(job.priority).inc()
        self.news.submitted.set()
        return kept

    async def get(self, job_id: str, principal: Principal, *, watching: bool = False) -> Job:
        """Return a job of the principal's; raise ``JobNotFound``, for someone else's too, and ``JobGone``."""
        return _owned(job_id, await self._store.get(job_id, watching=watching), principal)

    async def cancel(self, job_id: str, principal: Principal) -> Job:
        """Cancel a job of the principal's; one that is over stays as it is. Raise ``JobNotFound`` or ``JobGone``."""
        await self.get(job_id, principal)
        cancelled = _owned(job_id, await self._store.cancel(job_id), principal)
        self.news.cancelled.set()
        return cancelled


async def once_more(submit: Callable[[], Awaitable[T]]) -> T:
    """Submit again where the store did not answer: it may have what it was given, and keeps that once."""
    try:
        return await submit()
    except StoreUnavailable:
        return await submit()


def _owned(job_id: str, job: Job | GoneJob | None, principal: Principal) -> Job:
    if job is None or job.principal != principal.name:
        raise JobNotFound(f"there is no job {job_id!r}")
    if isinstance(job, GoneJob):
        raise JobGone(f"the job {job_id!r} is over, and its result is not kept any more")
    return job


class NotYet(PutBack):
    """A job has to wait for something that passes."""

    def __init__(self, wait_s: float, *, is_setback: bool = False) -> None:
        super().__init__(f"to be tried again in {wait_s:g} s")
        self.wait_s = wait_s
        self.is_setback = is_setback
        """Whether something failed that may have been paid for: it is not tried for ever."""


class JobRunner:
    """Does one job. What was accepted does not fail at what passes: it is told to wait for that."""

    def __init__(
        self,
        *,
        routes: Mapping[str, JobRoute],
        generation: GenerationService,
        authenticator: Authenticator,
        tracing: Tracing | None = None,
    ) -> None:
        self._tracing = tracing
        self._routes = routes
        self._generation = generation
        self._authenticator = authenticator

    def log_fields(self, job: Job) -> dict[str, str]:
        """Return what a log line says of a run of a job, so that it can be found."""
        trace = {} if self._tracing is None else {"trace_id": trace_of(job)}
        return {"job_id": job.id, **trace}

    async def run(self, job: Job, progress: Callable[[str | None], object]) -> JobOutcome:
        """Generate what a job asks for, and tell how that ended.

        Hands ``progress`` each piece of text, and None where it begins again. Raises ``NotYet``, and defects.
        """
        with run_of(job, self._tracing) as span:
            outcome = await self._ended(job, progress, span)
            tell_outcome(span, outcome)
            return outcome

    async def _ended(self, job: Job, progress: Callable[[str | None], object], span: Span | None) -> JobOutcome:
        try:
            async with asyncio.timeout(job.left_s) as deadline:
                return await self._answered(job, progress, span)
        except TimeoutError:
            if not deadline.expired():
                raise  # a defect
            return JobOutcome(JobStatus.EXPIRED, error=DEADLINE_PASSED)
        except _PASSING as error:
            asked_s = WAIT_S if error.retry_after_s is None else error.retry_after_s
            raise NotYet(min(max(asked_s, WAIT_MIN_S * 2.0 ** min(job.waits, 10)), WAIT_MAX_S)) from error
        except ServiceError as error:
            if isinstance(error, UpstreamError) and error.retryable:
                _count_setback(job, error)
            return _failed(error)

    async def _answered(self, job: Job, progress: Callable[[str | None], object], span: Span | None) -> JobOutcome:
        route = self._routes.get(job.route)
        if route is None:  # it was accepted by a newer version, whose workers know it
            raise NotYet(WAIT_MAX_S)
        try:
            request, context = self._read(job, route, span)
        except ServiceError as error:
            _count_setback(job, error)
            return _failed(error)
        completion = await self._completed(request, context, progress)
        return JobOutcome(
            JobStatus.COMPLETE,
            answer=route.write(completion, job),
            usage=completion.usage,
            cost_nano_usd=self._generation.cost_nano_usd(request.model, completion.usage, context),
        )

    def _read(self, job: Job, route: JobRoute, span: Span | None) -> tuple[GenerationRequest, RequestContext]:
        """Return what to ask and for whom: whoever accepted the job could."""
        request = route.read(job.body)
        try:
            principal = self._authenticator.renew(Principal(job.principal))
        except Unauthenticated:
            raise PermissionDenied(f"{job.principal!r}, whose job this is, has no key any more") from None
        context = RequestContext(request_id=job.id, principal=principal, background=True, span=span)
        if not job.is_line:  # the models of a batch were not looked at
            self._generation.check_model(request.model, context)
        return request, context

    async def _completed(
        self, request: GenerationRequest, context: RequestContext, progress: Callable[[str | None], object]
    ) -> Completion:
        """Generate by a stream, so that a watcher sees it grow, and a cancelled one costs what came and no more."""
        if request.wire is not None:  # a vendor's own body, of which a stream would lose what we have no word for
            return await self._generation.complete(request, context)
        for tries_left in reversed(range(TRIES_MAX)):
            try:
                return await self._gathered(request, context, progress)
            except UpstreamError as error:
                if not error.retryable or isinstance(error, _PASSING) or not tries_left:
                    raise
                progress(None)
        raise AssertionError("the last try returns or raises")

    async def _gathered(
        self, request: GenerationRequest, context: RequestContext, progress: Callable[[str | None], object]
    ) -> Completion:
        pieces: list[str] = []
        model, response_id = request.model, context.request_id
        usage: Usage | None = None
        reason: FinishReason | None = None
        async with self._generation.stream(request, context) as chunks:
            async for chunk in chunks:
                if chunk.text:
                    pieces.append(chunk.text)
                    progress(chunk.text)
                model = chunk.model or model
                response_id = chunk.response_id or response_id
                usage = chunk.usage or usage
                reason = chunk.finish_reason or reason
        if reason is None:
            raise AssertionError("a provider's stream ends only after a finish reason")
        text = "".join(pieces)
        if usage is None:
            usage = Usage(tokens_in(input_size(request)), tokens_in(len(text.encode())), estimated=True)
        return Completion(model=model, choices=(Choice(text, reason),), usage=usage, response_id=response_id)


def _count_setback(job: Job, error: ServiceError) -> None:
    """Raise ``NotYet``, unless the job has had as many setbacks as it may."""
    if job.setbacks < len(SETBACKS_S):
        raise NotYet(SETBACKS_S[job.setbacks], is_setback=True) from error


def _failed(error: ServiceError) -> JobOutcome:
    fault = JobError(error.code, error.message, retryable=error.retryable)
    return JobOutcome(JobStatus.FAILED, error=fault)
