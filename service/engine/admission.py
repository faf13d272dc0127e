"""Letting requests in: what one is estimated to take, whose limits it must pass, and what it took in the end."""

import logging
import re
import time
from bisect import bisect_left, insort
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from hashlib import sha256

from service.admission.base import DemandTooLarge, Limiter, LimitReached
from service.config import Settings
from service.domain.estimates import input_size, size_of, tokens_in
from service.domain.generation import EmbeddingRequest, GenerationRequest, Usage
from service.domain.limits import Demand, Quota, Reservation, Scope, quotas_of
from service.domain.principal import RequestContext
from service.domain.trace import Value
from service.engine.attempt import MAY_BE_BILLED
from service.engine.catalogue import ModelEntry
from service.errors import CircuitOpen, Overloaded, PermissionDenied, ServiceError
from service.queueing.work import Work
from service.telemetry import semconv
from service.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

DEFAULT_OUTPUT_TOKENS = 512
"""The output that is reserved before anything is known of a model's answers; ``max_tokens`` where that is less."""
OUTPUTS_KEPT = 256
OUTPUTS_NEEDED = 20
"""Answers of a model from which its outputs are learned: fewer say nothing of a 95th percentile."""
_PLAIN_USER = re.compile(r"[A-Za-z0-9._@-]{1,64}")


class LearnedOutputs:
    """How many tokens the answers of each model have: the 95th percentile of the last ones that this process saw."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[deque[int], list[int]]] = {}
        """By configured model: in order of time, and of size."""

    def add(self, model: str, output_tokens: int) -> None:
        """Learn from an answer."""
        latest, ordered = self._seen.setdefault(model, (deque(), []))
        latest.append(output_tokens)
        insort(ordered, output_tokens)
        if len(latest) > OUTPUTS_KEPT:
            del ordered[bisect_left(ordered, latest.popleft())]

    def expected(self, model: str) -> int:
        """Return what an answer takes at most, in 95 of 100 cases."""
        _, ordered = self._seen.get(model, ((), ()))
        if len(ordered) < OUTPUTS_NEEDED:
            return DEFAULT_OUTPUT_TOKENS
        return ordered[len(ordered) * 95 // 100]


class Admitted:
    """A request that was let in, and what becomes of it."""

    def __init__(self, work: Work) -> None:
        self.work = work
        """What it asks of a provider, as estimated."""
        self.was_asked = False
        """Whether any provider was."""
        self.billable = 0
        """Calls to providers that may cost something: all but those that failed without a bill."""
        self.usage: Usage | None = None
        """What it took, once that is known."""
        self.was_cut = False
        """Whether an answer reached its token limit."""

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Call a provider while the context is open."""
        self.was_asked = True
        self.billable += 1
        try:
            yield
        except ServiceError as error:
            if not isinstance(error, MAY_BE_BILLED):
                self.billable -= 1
            raise


class Admission:
    """Asks the limiter for every request that has a limit, and settles with it whatever happens."""

    def __init__(self, *, limiter: Limiter, shadow: bool, metrics: Metrics) -> None:
        self._limiter = limiter
        self.shadow = shadow
        """Whether nothing is refused, only counted and logged; follows the configuration file."""
        self._metrics = metrics
        self._outputs = LearnedOutputs()

    async def prepare(self, settings: Settings) -> Callable[[], None]:
        """See ``Reloadable`` in ``service.reloading``. A request goes by what it found when it began."""

        def commit() -> None:
            self.shadow = settings.admission.shadow

        return commit

    @asynccontextmanager
    async def admitted(
        self, entry: ModelEntry, asked: GenerationRequest | EmbeddingRequest, context: RequestContext
    ) -> AsyncIterator[Admitted]:
        """Let a request in while the context is open.

        Raises ``LimitReached``, ``BeyondLimit``, ``StoreUnavailable``, and ``PermissionDenied`` where money is limited
        and the model has no price. What was reserved is settled on leaving: on ``usage`` where it is known; not at all
        of tokens and money where no provider was asked, or each call failed without a bill; else as estimated. Where
        no provider could be asked, the request is not counted either.
        """
        work = self._work(entry, asked, context)
        admitted = Admitted(work)
        scopes = _scopes(entry, asked.user_id, context)
        reservation = await self._reserve(entry, asked, context, scopes, work) if scopes else None
        try:
            yield admitted
        except (CircuitOpen, Overloaded):
            # Who is told to come again must not meet its own limit then.
            if reservation is not None and not admitted.was_asked:
                self._limiter.give_back(reservation)
                reservation = None
            raise
        finally:
            self._settle(entry, asked, admitted, reservation)

    async def _reserve(
        self,
        entry: ModelEntry,
        asked: GenerationRequest | EmbeddingRequest,
        context: RequestContext,
        scopes: list[Scope],
        work: Work,
    ) -> Reservation | None:
        shadow = self.shadow
        quotas = [quota for scope in scopes for quota in quotas_of(scope)]
        began = time.perf_counter()
        decision = "refused"
        try:
            reservation = await self._limiter.reserve(scopes, _demand(entry, asked, quotas, work))
        except LimitReached as error:
            self._refused(error.quotas, error, context, shadow=shadow)
            if shadow:
                return None
            context.standing.balances = error.balances
            raise
        except ServiceError as error:
            refusing = error.quotas if isinstance(error, DemandTooLarge) else ()
            self._refused(refusing, error, context, shadow=shadow)
            if shadow:
                return None
            raise
        else:
            decision = "admitted"
        finally:
            took_s = time.perf_counter() - began
            context.timings.limits += took_s
            self._metrics.limiter_duration.observe(took_s)
            if context.span is not None:
                told: dict[str, Value] = {semconv.LIMITS_DECISION: decision, semconv.LIMITS_WAIT: took_s}
                context.span.event(semconv.LIMITS, told)
        if not shadow:
            context.standing.balances = reservation.balances
        for quota in quotas:
            self._metrics.rate_limit_decisions.labels(quota.kind, quota.resource, "admitted").inc()
        return reservation

    def _refused(
        self, quotas: tuple[Quota, ...], error: ServiceError, context: RequestContext, *, shadow: bool
    ) -> None:
        decision = "would_refuse" if shadow else "refused"
        for quota in quotas:
            self._metrics.rate_limit_decisions.labels(quota.kind, quota.resource, decision).inc()
        if shadow:
            logger.info(
                "would refuse: %s",
                error.message,
                extra={
                    **context.log_fields,
                    "principal": context.principal.name,
                    "code": error.code,
                    "retry_after_s": error.retry_after_s,
                },
            )

    def _work(self, entry: ModelEntry, asked: GenerationRequest | EmbeddingRequest, context: RequestContext) -> Work:
        """Estimate what a request takes."""
        if isinstance(asked, EmbeddingRequest):
            input_tokens, output_tokens = _embedding_tokens(asked), 0
        else:
            input_tokens = tokens_in(input_size(asked))
            expected = self._outputs.expected(entry.name)
            if asked.max_tokens is not None:
                expected = min(expected, asked.max_tokens)
            output_tokens = expected * asked.choices
        return Work(
            principal=context.principal.name,
            priority=context.priority,
            weight=context.principal.weight,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            ticket=partial(_ticket, asked, context.principal.name),
            deadline_at=context.deadline_at,
            timings=context.timings,
        )

    def _settle(
        self,
        entry: ModelEntry,
        asked: GenerationRequest | EmbeddingRequest,
        admitted: Admitted,
        reservation: Reservation | None,
    ) -> None:
        usage = admitted.usage
        if usage is not None and not usage.estimated and isinstance(asked, GenerationRequest):
            self._learn(entry, asked, usage, was_cut=admitted.was_cut)
        if reservation is None:
            return
        if usage is None:
            self._limiter.settle(reservation, reservation.demand if admitted.billable else Demand())
            return
        tokens = usage.input_tokens + usage.output_tokens
        nano_usd = entry.price.nano_usd(usage) if entry.price is not None else 0
        if reservation.demand.tokens and not usage.estimated:
            self._metrics.reservation_ratio.observe(reservation.demand.tokens / max(1, tokens))
        self._limiter.settle(reservation, Demand(tokens, nano_usd))

    def _learn(self, entry: ModelEntry, asked: GenerationRequest, usage: Usage, *, was_cut: bool) -> None:
        # How long an answer would have been is not known where its caller bounded it: a few such callers, and everybody
        # else's requests would be taken for short ones.
        bound = asked.max_tokens
        if bound is None or not (was_cut or bound < self._outputs.expected(entry.name)):
            self._outputs.add(entry.name, usage.output_tokens // asked.choices)


def _demand(entry: ModelEntry, asked: GenerationRequest | EmbeddingRequest, quotas: list[Quota], work: Work) -> Demand:
    """Say what a request takes of what is limited."""
    rooms = [quota.capacity for quota in quotas if quota.resource == "tokens"]
    money = next((quota for quota in quotas if quota.resource == "usd"), None)
    if not rooms and money is None:
        return Demand()
    output_tokens = work.output_tokens
    if rooms and isinstance(asked, GenerationRequest) and asked.max_tokens is None:
        # Who asks for no length shall not be told to ask for less: it waits for all there can be.
        output_tokens = max(0, min(output_tokens, min(rooms) - work.input_tokens))
    nano_usd = 0
    if money is not None:
        if entry.price is None:
            raise PermissionDenied(
                f"{money.owner} has a budget, and the model {entry.name!r} has no price: its operator must set "
                "price_usd_per_million_tokens"
            )
        nano_usd = entry.price.nano_usd(Usage(work.input_tokens, output_tokens))
    # An embedding has no output that could be shorter.
    set_by = "max_tokens" if isinstance(asked, GenerationRequest) else "input"
    return Demand(work.input_tokens + output_tokens, nano_usd, set_by)


def _ticket(asked: GenerationRequest | EmbeddingRequest, principal: str) -> str:
    """Return what a request is known by when it comes again: whose it is, and what it asks."""
    what = asked.messages if isinstance(asked, GenerationRequest) else asked.fields
    return sha256(repr((principal, asked.user_id, asked.model, what)).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _scopes(entry: ModelEntry, user_id: str | None, context: RequestContext) -> list[Scope]:
    """List whose limits a request must pass; those that limit nothing are left out."""
    principal = context.principal
    scopes = [Scope("key", principal.name, principal.limits)]
    if user_id is not None:
        scopes.append(Scope("user", f"{principal.name}/{_user_name(user_id)}", principal.user_limits))
    scopes.append(Scope("model", entry.name, entry.limits))
    return [scope for scope in scopes if quotas_of(scope)]


def _user_name(user_id: str) -> str:
    """Return a name that is short and harmless in a key of the store, and anybody else's only by its hash."""
    if _PLAIN_USER.fullmatch(user_id):
        return user_id
    return f"sha256:{sha256(user_id.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"


def _embedding_tokens(asked: EmbeddingRequest) -> int:
    """Estimate the tokens of texts; those of token lists are counted."""
    given = asked.fields.get("input")
    texts = given if isinstance(given, list) else [given]
    count = size = 0
    for text in texts:
        if isinstance(text, str):
            size += size_of(text)
        elif isinstance(text, list):
            count += len(text)
        elif text is not None:
            count += 1
    return count + tokens_in(size)
