"""Generating: from a request to an answer, whole or streamed, over the routes that its model has."""

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Literal, Self, TypeVar

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
from service.engine.admission import Admission
from service.engine.attempt import Attempt, Call
from service.engine.attempts import Attempts
from service.engine.catalogue import Mode, ModelCard, ModelCatalogue, ModelEntry, Route
from service.errors import InternalError, ServiceError
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
        metrics: Metrics,
    ) -> None:
        self._catalogue = catalogue
        self._attempts = attempts
        self._admission = admission
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

        async def ask(attempt: Attempt) -> Completion:
            return await attempt.provider.complete(
                request, upstream_model=attempt.route.model, deadline=attempt.deadline, key=attempt.key
            )

        return await self._whole(entry, request, context, ask)

    async def embed(self, request: EmbeddingRequest, context: RequestContext) -> EmbeddingResult:
        """Turn texts into vectors. Raises what :meth:`Admission.admitted` does, as ``complete``."""
        entry = self._catalogue.find(request.model, context.principal, "embeddings")

        async def ask(attempt: Attempt) -> EmbeddingResult:
            return await attempt.provider.embed(
                request, upstream_model=attempt.route.model, deadline=attempt.deadline, key=attempt.key
            )

        return await self._whole(entry, request, context, ask)

    async def _whole(
        self,
        entry: ModelEntry,
        request: GenerationRequest | EmbeddingRequest,
        context: RequestContext,
        ask: Call[Answer],
    ) -> Answer:
        """Ask for an answer that comes in one piece, and count what it took."""
        async with self._admission.admitted(entry, request, context) as admitted:

            async def call(attempt: Attempt) -> Answer:
                with admitted.asking(), self._timed(entry, attempt, "end"):
                    return await ask(attempt)

            with _awaited(context):
                answer, attempt = await self._attempts.make(entry, admitted.work, call)
            admitted.usage = answer.usage
            admitted.was_cut = _was_cut(answer)
            attempt.turn.end(answer.usage)
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
        async with AsyncExitStack() as stack:
            admitted = await stack.enter_async_context(self._admission.admitted(entry, request, context))

            async def call(attempt: Attempt) -> _Opened:
                with admitted.asking(), self._timed(entry, attempt, "first_content"):
                    return await _opened(attempt, request)

            async def lose(attempt: Attempt, opened: _Opened | None) -> None:
                usage = Usage(admitted.work.input_tokens, 0, estimated=True)
                if opened is not None:
                    usage = opened.observed.estimated_usage(admitted.work)
                    try:
                        await opened.stack.aclose()
                    finally:
                        attempt.turn.end(usage)
                    self._count(entry, attempt.route, "cancelled")
                self._count_tokens(entry, attempt.route, usage)

            with _awaited(context):
                opened, attempt = await self._attempts.make(entry, admitted.work, call, lose=lose)
            stack.callback(lambda: attempt.turn.end(admitted.usage))  # once the connection is closed
            stack.push_async_exit(opened.stack)
            route, observed = attempt.route, opened.observed
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
                if outcome == "ok":
                    self._succeeded(entry, route, observed.usage)
                    self._note_pace(entry, route, admitted.usage, time.monotonic() - began)
                else:
                    if observed.failure is not None:
                        attempt.broke_off(observed.failure)
                    self._count(entry, route, outcome if observed.failure is None else _code_of(observed.failure))
                    self._count_tokens(entry, route, admitted.usage)

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


@contextmanager
def _awaited(context: RequestContext) -> Iterator[None]:
    """Note for how long a request waits for its turn and for providers."""
    began = time.monotonic()
    try:
        yield
    finally:
        context.waits.attempts_s += time.monotonic() - began


class _ObservedStream:
    """A provider's chunks, its first given back, with what they said in the end."""

    def __init__(self, first: Chunk, rest: AsyncIterator[Chunk]) -> None:
        self._first: Chunk | None = first
        self._rest = rest
        self._seen_bytes = 0
        self._first_usage = first.first_usage
        self.usage = first.usage
        self.was_cut = False
        """Whether an answer reached its token limit."""
        self.ended = False
        """Whether the provider's stream came to its own end."""
        self.failure: Exception | None = None
        """What ended it otherwise."""
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
                raise
            except Exception as error:
                self.failure = error
                raise
            self._look_at(chunk)
        if chunk.usage is not None:
            self.usage = chunk.usage
        return chunk

    def _look_at(self, chunk: Chunk) -> None:
        for delta in chunk.deltas:
            self._seen_bytes += delta_size(delta)
            if delta.finish_reason is FinishReason.LENGTH:
                self.was_cut = True

    @property
    def seen_tokens(self) -> int:
        """Guess the tokens of what came, handed on or not."""
        return tokens_in(self._seen_bytes)

    def estimated_usage(self, work: Work) -> Usage:
        """Guess the tokens that the provider bills for what came, handed on or not; what it read it may have told."""
        told = self._first_usage
        if told is not None:
            return replace(told, output_tokens=max(told.output_tokens, self.seen_tokens), estimated=True)
        return Usage(work.input_tokens, self.seen_tokens, estimated=True)


@dataclass(frozen=True, slots=True)
class _Opened:
    """A stream whose first content has come."""

    observed: _ObservedStream
    stack: AsyncExitStack
    """Closes the upstream connection."""


async def _opened(attempt: Attempt, request: GenerationRequest) -> _Opened:
    async with AsyncExitStack() as stack:
        chunks = await stack.enter_async_context(
            attempt.provider.stream(
                request, upstream_model=attempt.route.model, deadline=attempt.deadline, key=attempt.key
            )
        )
        first = await _first_content(chunks)
        attempt.turn.first_content()
        return _Opened(_ObservedStream(first, chunks), stack.pop_all())


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
