"""Generating: from a request to an answer, whole or streamed, over the routes that its model has."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Self, TypeVar

from service.domain.clock import Clock, Deadline
from service.domain.estimates import delta_size, input_size, tokens_in
from service.domain.generation import (
    Chunk,
    Completion,
    EmbeddingRequest,
    EmbeddingResult,
    GenerationRequest,
    Usage,
)
from service.domain.principal import Principal, RequestContext
from service.engine.catalogue import Mode, ModelCard, ModelCatalogue, ModelEntry, Route
from service.errors import UNSUPPORTED, InternalError, InvalidRequest, ServiceError, UpstreamError
from service.providers.base import Provider
from service.telemetry.metrics import Metrics

T = TypeVar("T")


class GenerationService:
    """Answers with the first of a model's routes that can.

    Another route is tried where a provider fails, or cannot do what is asked, and only as long as nothing of an answer
    was handed on.
    """

    def __init__(
        self,
        *,
        catalogue: ModelCatalogue,
        providers: Mapping[str, Provider],
        total_timeouts_s: Mapping[str, float],
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._catalogue = catalogue
        self._providers = providers
        self._total_timeouts_s = total_timeouts_s
        self._metrics = metrics
        self._clock = clock
        self.last_success_at: float | None = None
        """Monotonic seconds of the last answer that a provider gave to a caller."""
        self.last_failure: UpstreamError | None = None
        """Why no provider could answer, if that is how the last request that reached one went."""

    def models(self, principal: Principal) -> tuple[ModelCard, ...]:
        """List what the principal may use."""
        return self._catalogue.cards(principal)

    def check_model(self, model: str, context: RequestContext, *, mode: Mode = "chat") -> None:
        """Raise ``ModelNotFound`` if the caller cannot use ``model``."""
        self._catalogue.find(model, context.principal, mode)

    async def complete(self, request: GenerationRequest, context: RequestContext) -> Completion:
        """Generate a whole answer."""

        async def call(provider: Provider, route: Route, deadline: Deadline) -> Completion:
            return await provider.complete(request, upstream_model=route.model, deadline=deadline)

        entry = self._catalogue.find(request.model, context.principal, "chat")
        completion, route = await self._first_that_can(entry, call)
        self._succeeded(entry, route, completion.usage)
        return completion

    async def embed(self, request: EmbeddingRequest, context: RequestContext) -> EmbeddingResult:
        """Turn texts into vectors."""

        async def call(provider: Provider, route: Route, deadline: Deadline) -> EmbeddingResult:
            return await provider.embed(request, upstream_model=route.model, deadline=deadline)

        entry = self._catalogue.find(request.model, context.principal, "embeddings")
        result, route = await self._first_that_can(entry, call)
        self._succeeded(entry, route, result.usage)
        return result

    @asynccontextmanager
    async def stream(self, request: GenerationRequest, context: RequestContext) -> AsyncIterator[AsyncIterator[Chunk]]:
        """Open a stream whose first content has arrived; leaving it closes the upstream connection.

        What fails before that content is raised on entering, what fails later by the iterator, which ends by itself
        only after a finish reason. One that is left or fails after its first content is counted too: the provider bills
        what it read and wrote, and where it did not come to say how much, we estimate.
        """
        async with AsyncExitStack() as stack:

            async def call(provider: Provider, route: Route, deadline: Deadline) -> tuple[Chunk, AsyncIterator[Chunk]]:
                async with AsyncExitStack() as attempt:
                    chunks = await attempt.enter_async_context(
                        provider.stream(request, upstream_model=route.model, deadline=deadline)
                    )
                    first = await _first_content(chunks)
                    stack.push_async_exit(attempt.pop_all())
                    return first, chunks

            entry = self._catalogue.find(request.model, context.principal, "chat")
            (first, chunks), route = await self._first_that_can(entry, call)
            observed = _ObservedStream(first, chunks)
            outcome = "cancelled"
            try:
                yield observed
                outcome = "ok" if observed.ended else "cancelled"
            except ServiceError as error:
                outcome = error.code
                raise
            finally:
                if outcome == "ok":
                    self._succeeded(entry, route, observed.usage)
                else:
                    self._count(entry, route, observed.failure or outcome)
                    self._count_tokens(entry, route, observed.usage or observed.estimated_usage(request))

    async def _first_that_can(
        self, entry: ModelEntry, call: Callable[[Provider, Route, Deadline], Awaitable[T]]
    ) -> tuple[T, Route]:
        failure: ServiceError | None = None
        for route in entry.routes:
            deadline = Deadline.after(self._total_timeouts_s[route.provider], self._clock)
            try:
                return await call(self._providers[route.provider], route, deadline), route
            except UpstreamError as error:
                self._count(entry, route, error.code)
                if not error.fallback:
                    raise
                failure = self.last_failure = error
            except InvalidRequest as error:
                self._count(entry, route, error.code)
                if not any(fault.type == UNSUPPORTED for fault in error.fields):
                    raise
                # An outage of the route before it says more about why there is no answer.
                failure = failure or error
            except asyncio.CancelledError:
                self._count(entry, route, "cancelled")
                raise
            except Exception as error:
                self._count(entry, route, _code_of(error))
                raise
        if failure is None:
            raise AssertionError("a model has at least one route")
        raise failure

    def _succeeded(self, entry: ModelEntry, route: Route, usage: Usage | None) -> None:
        self.last_success_at = self._clock.monotonic()
        self.last_failure = None
        self._count(entry, route, "ok")
        if usage is not None:
            self._count_tokens(entry, route, usage)

    def _count_tokens(self, entry: ModelEntry, route: Route, usage: Usage) -> None:
        tokens = self._metrics.tokens
        tokens.labels(route.provider, entry.name, "input").inc(usage.input_tokens)
        tokens.labels(route.provider, entry.name, "output").inc(usage.output_tokens)

    def _count(self, entry: ModelEntry, route: Route, outcome: str) -> None:
        self._metrics.upstream_requests.labels(route.provider, entry.name, outcome).inc()


class _ObservedStream:
    """A provider's chunks, its first given back, with what they said in the end."""

    def __init__(self, first: Chunk, rest: AsyncIterator[Chunk]) -> None:
        self._first: Chunk | None = first
        self._rest = rest
        self._seen_bytes = sum(map(delta_size, first.deltas))
        self.usage = first.usage
        self.ended = False
        """Whether the provider's stream came to its own end."""
        self.failure: str | None = None
        """The code of the error that ended it otherwise."""

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
                self.failure = _code_of(error)
                raise
            for delta in chunk.deltas:
                self._seen_bytes += delta_size(delta)
        if chunk.usage is not None:
            self.usage = chunk.usage
        return chunk

    def estimated_usage(self, request: GenerationRequest) -> Usage:
        """Guess the tokens that the provider bills for what came, handed on or not."""
        return Usage(tokens_in(input_size(request)), tokens_in(self._seen_bytes), estimated=True)


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


def _code_of(error: Exception) -> str:
    return error.code if isinstance(error, ServiceError) else InternalError.code


def _merged(first: Chunk, second: Chunk) -> Chunk:
    return Chunk(
        raw=first.raw + second.raw,
        dialect=first.dialect,
        deltas=first.deltas + second.deltas,
        usage=second.usage or first.usage,
        response_id=first.response_id or second.response_id,
        model=first.model or second.model,
    )
