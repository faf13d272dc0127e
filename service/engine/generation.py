"""Generating: from a request to an answer, whole or streamed, over the routes that its model has."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Literal, Self, TypeVar

from msgspec import structs

from service.domain.estimates import delta_size, tokens_in
from service.domain.generation import (
    Chunk,
    Completion,
    EmbeddingRequest,
    EmbeddingResult,
    FinishReason,
    GenerationRequest,
    Usage,
)
from service.domain.principal import Principal, RequestContext
from service.domain.usage_record import CANCELLED, OK
from service.engine.admission import Admission
from service.engine.attempt import Attempt
from service.engine.attempts import Attempts
from service.engine.catalogue import Mode, ModelCard, ModelCatalogue, ModelEntry, Route
from service.engine.content import Content
from service.engine.ledger import Account, Ledger, OpenCall
from service.engine.model_span import UNTOLD, ModelSpan, model_span
from service.errors import InternalError, ServiceError, UpstreamError
from service.queueing.work import Work
from service.telemetry.metrics import Metrics

Answer = TypeVar("Answer", Completion, EmbeddingResult)


class GenerationService:
    """Answers with the first of a model's routes that can.

    Another route is tried where a provider fails, or cannot do what is asked, and only as long as nothing of an answer
    was handed on.
    """

    def __init__(
        self,
        *,
        catalogue: ModelCatalogue,
        attempts: Attempts,
        admission: Admission,
        ledger: Ledger,
        metrics: Metrics,
    ) -> None:
        self._catalogue = catalogue
        self._attempts = attempts
        self._admission = admission
        self._ledger = ledger
        self._metrics = metrics

    def models(self, principal: Principal) -> tuple[ModelCard, ...]:
        """List what the principal may use."""
        return self._catalogue.cards(principal)

    def check_model(self, model: str, context: RequestContext, *, mode: Mode = "chat") -> None:
        """Raise ``ModelNotFound`` if the caller cannot use ``model``."""
        self._catalogue.find(model, context.principal, mode)

    def cost_nano_usd(self, model: str, usage: Usage, context: RequestContext) -> int | None:
        """Return what an answer of ``model`` costs, in nano-dollars; None where that is not known."""
        price = self._catalogue.find(model, context.principal, "chat").price
        return None if price is None else price.nano_usd(usage)

    async def complete(self, request: GenerationRequest, context: RequestContext) -> Completion:
        """Generate a whole answer. Raises what :meth:`Admission.admitted` does before any provider is asked."""
        entry = self._catalogue.find(request.model, context.principal, "chat")

        async def ask(attempt: Attempt, call_id: str) -> Completion:
            return await attempt.provider.complete(
                replace(request, call_id=call_id),
                upstream_model=attempt.route.model,
                deadline=attempt.deadline,
                key=attempt.key,
            )

        return await self._whole(entry, request, context, ask)

    async def embed(self, request: EmbeddingRequest, context: RequestContext) -> EmbeddingResult:
        """Turn texts into vectors. Raises what :meth:`Admission.admitted` does, as ``complete``."""
        entry = self._catalogue.find(request.model, context.principal, "embeddings")

        async def ask(attempt: Attempt, call_id: str) -> EmbeddingResult:
            return await attempt.provider.embed(
                replace(request, call_id=call_id),
                upstream_model=attempt.route.model,
                deadline=attempt.deadline,
                key=attempt.key,
            )

        return await self._whole(entry, request, context, ask)

    async def _whole(
        self,
        entry: ModelEntry,
        request: GenerationRequest | EmbeddingRequest,
        context: RequestContext,
        ask: Callable[[Attempt, str], Awaitable[Answer]],
    ) -> Answer:
        """Ask for an answer that comes in one piece, and count what it took."""
        async with (
            self._ledger.account(entry, request, context) as account,
            self._admission.admitted(entry, request, context) as admitted,
        ):
            await account.open(admitted.work)

            async def call(attempt: Attempt) -> Answer:
                with (
                    admitted.asking(),
                    self._timed(entry, attempt, "end"),
                    account.asking(attempt) as open_call,
                ):
                    answer = await ask(attempt, open_call.id)
                    open_call.ended(OK, answer.usage)
                    return answer

            with self._told(entry, request, context, streams=False) as span:
                answer, attempt = await self._attempts.make(entry, admitted.work, call, span=span)
                admitted.usage = answer.usage
                admitted.was_cut = _was_cut(answer)
                account.finish_reason = _finish_reason(answer)
                if account.content is not None and isinstance(answer, Completion):
                    account.content.answered(answer)
                attempt.end(answer.usage)
                self._tell_answer(span, attempt, answer.usage)
                span.completed(answer)
        self._succeeded(entry, attempt.route, answer.usage)
        return answer

    @asynccontextmanager
    async def stream(self, request: GenerationRequest, context: RequestContext) -> AsyncIterator[AsyncIterator[Chunk]]:
        """Open a stream whose first content has arrived; leaving it closes the upstream connection.

        What fails before that content is raised on entering, what fails later by the iterator, which ends by itself
        only after a finish reason. One that is left or fails after its first content is counted too: the provider bills
        what it read and wrote, and where it did not come to say how much, we estimate.
        """
        entry = self._catalogue.find(request.model, context.principal, "chat")
        async with (
            self._ledger.account(entry, request, context, streamed=True) as account,
            self._admission.admitted(entry, request, context) as admitted,
        ):
            await account.open(admitted.work)

            async def call(attempt: Attempt) -> _Opened:
                with (
                    admitted.asking(),
                    self._timed(entry, attempt, "first_content"),
                    account.asking(attempt) as open_call,
                ):
                    return await _opened(attempt, replace(request, call_id=open_call.id), open_call)

            async def lose(attempt: Attempt, opened: _Opened | None) -> None:
                usage = Usage(admitted.work.input_tokens, 0, estimated=True)
                if opened is not None:
                    usage = opened.observed.estimated_usage(admitted.work)
                    try:
                        await opened.close()
                    finally:
                        attempt.end(usage, is_whole=False)
                        opened.call.ended(CANCELLED, usage)
                    self._count(entry, attempt.route, "cancelled")
                self._count_tokens(entry, attempt.route, usage)

            with self._told(entry, request, context, streams=True) as span:
                opened, attempt = await self._attempts.make(entry, admitted.work, call, lose=lose, span=span)
                route, observed = attempt.route, opened.observed
                try:
                    async with opened:
                        span.first_content()
                        if account.content is not None:
                            observed.shown_to(account.content)
                        observed.on_end = partial(self._ended, account, opened, admitted.work)
                        outcome = "cancelled"
                        began = time.monotonic()
                        try:
                            yield observed
                            outcome = "ok" if observed.ended else "cancelled"
                        except ServiceError as error:
                            outcome = error.code
                            raise
                        finally:
                            admitted.usage = observed.usage or observed.estimated_usage(admitted.work)
                            admitted.was_cut = observed.was_cut
                            account.finish_reason = observed.finish_reason
                            self._tell_answer(span, attempt, admitted.usage)
                            observed.tell(span)
                            if outcome == "ok":
                                self._succeeded(entry, route, observed.usage)
                                self._note_pace(entry, route, admitted.usage, time.monotonic() - began)
                            else:
                                self._broke_off(entry, attempt, opened, outcome, admitted.usage)
                finally:
                    # Once the connection is closed.
                    attempt.end(admitted.usage, is_whole=observed.is_over)

    def _broke_off(self, entry: ModelEntry, attempt: Attempt, opened: "_Opened", outcome: str, usage: Usage) -> None:
        """Count a stream that was left, or failed after its first content."""
        failure = opened.observed.failure
        if failure is not None:
            attempt.broke_off(failure)
            outcome = _code_of(failure)
        self._count(entry, attempt.route, outcome)
        self._count_tokens(entry, attempt.route, usage)
        opened.call.ended(outcome, usage)

    @staticmethod
    async def _ended(account: Account, opened: "_Opened", work: Work) -> None:
        """Write the record before the answer ends: whoever has read it to its end finds it."""
        observed = opened.observed
        opened.call.ended(OK, observed.usage or observed.estimated_usage(work))
        account.finish_reason = observed.finish_reason
        await account.close()

    def _told(
        self,
        entry: ModelEntry,
        request: GenerationRequest | EmbeddingRequest,
        context: RequestContext,
        *,
        streams: bool,
    ) -> AbstractContextManager[ModelSpan]:
        if context.span is None:
            return UNTOLD
        vendor = self._attempts.vendor(entry.routes[0].provider)
        return model_span(context.span, entry.name, request, vendor=vendor, streams=streams, clock=self._attempts.clock)

    def _tell_answer(self, span: ModelSpan, attempt: Attempt, usage: Usage) -> None:
        if span.is_told:
            span.answered_by(attempt.route, self._attempts.vendor(attempt.route.provider))
            span.took(usage)

    def _succeeded(self, entry: ModelEntry, route: Route, usage: Usage | None) -> None:
        self._count(entry, route, "ok")
        if usage is not None:
            self._count_tokens(entry, route, usage)

    def _count_tokens(self, entry: ModelEntry, route: Route, usage: Usage) -> None:
        nano_usd = None if entry.price is None else entry.price.nano_usd(usage)
        self._metrics.note_usage(route.provider, entry.name, usage, nano_usd)

    def _note_pace(self, entry: ModelEntry, route: Route, usage: Usage, since_first_s: float) -> None:
        if usage.output_tokens > 1:
            pace = self._metrics.time_per_output_token.labels(route.provider, entry.name)
            pace.observe(since_first_s / (usage.output_tokens - 1))

    @contextmanager
    def _timed(self, entry: ModelEntry, attempt: Attempt, until: Literal["first_content", "end"]) -> Iterator[None]:
        """Measure a call that succeeds."""
        began = time.monotonic()
        yield
        durations = self._metrics.upstream_duration
        durations.labels(attempt.route.provider, entry.name, until).observe(time.monotonic() - began)

    def _count(self, entry: ModelEntry, route: Route, outcome: str) -> None:
        self._metrics.upstream_requests.labels(route.provider, entry.name, outcome).inc()


class _ObservedStream:
    """A provider's chunks, its first given back, with what they said in the end."""

    def __init__(
        self, first: Chunk, rest: AsyncIterator[Chunk], judged: Callable[[UpstreamError], UpstreamError]
    ) -> None:
        """``judged`` says what a failure of the provider's is to the caller."""
        self._first: Chunk | None = first
        self._rest = rest
        self._judged = judged
        self._seen_bytes = 0
        self._first_usage = first.first_usage
        self.usage = first.usage
        self.was_cut = False
        """Whether an answer reached its token limit."""
        self.on_end: Callable[[], Awaitable[None]] | None = None
        """Is awaited when the stream has come to its own end, before whoever reads it learns that."""
        self.ended = False
        """Whether the provider's stream came to its own end."""
        self._content: Content | None = None
        self.failure: Exception | None = None
        """What ended it otherwise."""
        self._model, self._response_id = first.model, first.response_id
        self._finish_reasons: dict[int, FinishReason] = {}
        """By choice."""
        self._look_at(first)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        if self._first is not None:
            chunk, self._first = self._first, None
        else:
            try:
                chunk = await anext(self._rest)
            except StopAsyncIteration:
                self.ended = True
                if self.on_end is not None:
                    await self.on_end()
                raise
            except UpstreamError as error:
                self.failure = self._judged(error)
                raise self.failure from error
            except Exception as error:
                self.failure = error
                raise
            self._look_at(chunk)
            if self._content is not None:
                self._content.add(chunk)
        if chunk.usage is not None:
            self.usage = chunk.usage
        return chunk

    def shown_to(self, content: Content) -> None:
        """Give the texts of what comes, and of what came first, to the log."""
        self._content = content
        if self._first is not None:
            content.add(self._first)

    def _look_at(self, chunk: Chunk) -> None:
        for delta in chunk.deltas:
            self._seen_bytes += delta_size(delta)
            if delta.finish_reason is not None:
                self._finish_reasons[delta.choice] = delta.finish_reason
                if delta.finish_reason is FinishReason.LENGTH:
                    self.was_cut = True

    @property
    def finish_reason(self) -> str | None:
        """Why the first answer ended, once it has."""
        reason = self._finish_reasons.get(0)
        return None if reason is None else reason.value

    @property
    def is_over(self) -> bool:
        """Whether it ended before it was left."""
        return self.ended or self.failure is not None

    def tell(self, span: ModelSpan) -> None:
        """Tell what came, and how it ended."""
        span.told(self._model, self._response_id, [reason.value for reason in self._finish_reasons.values()])
        if self.failure is not None:
            span.broke_off(self.failure)
        elif not self.ended:
            span.left()

    @property
    def seen_tokens(self) -> int:
        """Guess the tokens of what came, handed on or not."""
        return tokens_in(self._seen_bytes)

    def estimated_usage(self, work: Work) -> Usage:
        """Guess the tokens that the provider bills for what came, handed on or not; what it read it may have told."""
        told = self._first_usage
        if told is not None:
            return structs.replace(told, output_tokens=max(told.output_tokens, self.seen_tokens), estimated=True)
        return Usage(work.input_tokens, self.seen_tokens, estimated=True)


class _Opened:
    """A stream whose first content has come; leaving it closes the upstream connection."""

    __slots__ = ("_stream", "call", "observed")

    def __init__(
        self, observed: _ObservedStream, stream: AbstractAsyncContextManager[AsyncIterator[Chunk]], call: OpenCall
    ) -> None:
        """``stream`` has been entered."""
        self.observed = observed
        self.call = call
        self._stream = stream

    async def close(self) -> None:
        """Leave it before its end."""
        await self._stream.__aexit__(None, None, None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stream.__aexit__(kind, error, traceback)


async def _opened(attempt: Attempt, request: GenerationRequest, call: OpenCall) -> _Opened:
    stream = attempt.provider.stream(
        request, upstream_model=attempt.route.model, deadline=attempt.deadline, key=attempt.key
    )
    chunks = await stream.__aenter__()
    try:
        first = await _first_content(chunks)
        attempt.turn.first_content()
        call.first_content()
    except BaseException as error:
        await stream.__aexit__(type(error), error, error.__traceback__)
        raise
    return _Opened(_ObservedStream(first, chunks, attempt.judged), stream, call)


async def _first_content(chunks: AsyncIterator[Chunk]) -> Chunk:
    """Wait for content, so that what fails before it can still be a status code or go to another route."""
    startup: Chunk | None = None
    async for chunk in chunks:
        merged = chunk if startup is None else _merged(startup, chunk)
        if merged.usage is not None or any(
            delta.text or delta.reasoning or delta.refusal or delta.tool_calls or delta.finish_reason is not None
            for delta in chunk.deltas
        ):
            return merged
        startup = merged
    raise AssertionError("a provider's stream ends only after a finish reason")


def _was_cut(answer: Completion | EmbeddingResult) -> bool:
    """Whether an answer reached its token limit; vectors have none."""
    return isinstance(answer, Completion) and any(
        choice.finish_reason is FinishReason.LENGTH for choice in answer.choices
    )


def _finish_reason(answer: Completion | EmbeddingResult) -> str | None:
    """Say why the first answer ended; vectors do not tell."""
    return answer.choices[0].finish_reason.value if isinstance(answer, Completion) else None


def _code_of(error: Exception) -> str:
    return error.code if isinstance(error, ServiceError) else InternalError.code


def _merged(first: Chunk, second: Chunk) -> Chunk:
    return Chunk(
        raw=first.raw + second.raw,
        dialect=first.dialect,
        deltas=first.deltas + second.deltas,
        usage=second.usage or first.usage,
        first_usage=first.first_usage or second.first_usage,
        response_id=first.response_id or second.response_id,
        model=first.model or second.model,
    )
