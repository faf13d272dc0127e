"""What a trace tells of one call to a model: the call as its caller means it, and each attempt below it.

Prompts, answers, stop strings and messages of errors are never told.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

from service.domain.clock import Clock
from service.domain.generation import Completion, EmbeddingRequest, GenerationRequest, Usage
from service.domain.trace import Span, Value
from service.engine.catalogue import Route
from service.errors import InternalError, ServiceError
from service.telemetry import semconv

CANCELLED = "cancelled"


class ModelSpan:
    """One call to a model, with all of its attempts; without a span it tells nothing."""

    __slots__ = ("_began_at", "_clock", "_span")

    def __init__(self, span: Span | None = None, clock: Clock | None = None) -> None:
        self._span = span
        self._clock = clock
        self._began_at = 0.0 if clock is None else clock.monotonic()

    @property
    def is_told(self) -> bool:
        """Whether it is worth while to look at anything."""
        return self._span is not None

    def attempt(self, route: Route, kind: str, *, number: int, waited_s: float) -> Span | None:
        """Begin the ``number``-th attempt, from 1, after so many seconds of waiting for a turn."""
        if self._span is None:
            return None
        attributes: dict[str, Value] = {
            semconv.REQUEST_METHOD: "POST",
            semconv.PROVIDER: route.provider,
            semconv.ATTEMPT_KIND: kind,
            semconv.QUEUE_WAIT: waited_s,
        }
        if number > 1:
            attributes[semconv.RESEND_COUNT] = number - 1
        return self._span.child(semconv.ATTEMPT, "client", attributes)

    def first_content(self) -> None:
        """Note that the first content of a stream is there."""
        if self._span is not None and self._clock is not None:
            took_s = self._clock.monotonic() - self._began_at
            self._span.set({semconv.FIRST_CHUNK: took_s})
            self._span.event(semconv.FIRST_TOKEN, {})

    def answered_by(self, route: Route, vendor: str) -> None:
        """Note who answers."""
        if self._span is not None:
            self._span.set({semconv.PROVIDER: route.provider, semconv.PROVIDER_NAME: vendor})

    def completed(self, answer: object) -> None:
        """Note what a whole answer says of itself."""
        if self._span is not None and isinstance(answer, Completion):
            reasons = [choice.finish_reason.value for choice in answer.choices]
            self.told(answer.model, answer.response_id, reasons)

    def told(self, model: str | None, response_id: str | None, reasons: Sequence[str]) -> None:
        """Note what a provider said of its answer."""
        if self._span is None:
            return
        given = {semconv.RESPONSE_MODEL: model, semconv.RESPONSE_ID: response_id, semconv.FINISH_REASONS: reasons}
        self._span.set({name: value for name, value in given.items() if value})

    def took(self, usage: Usage) -> None:
        """Note the tokens."""
        if self._span is None:
            return
        kinds = {
            semconv.CACHE_READ_TOKENS: usage.cached_input_tokens,
            semconv.CACHE_WRITE_TOKENS: usage.cache_write_tokens,
            semconv.REASONING_TOKENS: usage.reasoning_tokens,
        }
        self._span.set(
            {
                semconv.INPUT_TOKENS: usage.input_tokens,
                semconv.OUTPUT_TOKENS: usage.output_tokens,
                semconv.USAGE_ESTIMATED: usage.estimated,
                **{name: tokens for name, tokens in kinds.items() if tokens},
            }
        )

    def broke_off(self, error: BaseException) -> None:
        """Note what ended it before its time; a cancellation is no failure."""
        if self._span is not None:
            tell_end(self._span, error)

    def left(self) -> None:
        """Note that its reader left before its end."""
        if self._span is not None:
            self._span.set({semconv.OUTCOME: CANCELLED})


OFF = ModelSpan()
UNTOLD = nullcontext(OFF)
"""Stands for :func:`model_span` where nothing is told, and costs next to nothing."""


@contextmanager
def model_span(
    above: Span,
    model: str,
    request: GenerationRequest | EmbeddingRequest,
    *,
    vendor: str,
    streams: bool,
    clock: Clock,
) -> Iterator[ModelSpan]:
    """Trace the block as a call to a model. ``model`` is its configured name, which names spans: callers' are free."""
    operation = "chat" if isinstance(request, GenerationRequest) else "embeddings"
    span = above.child(f"{operation} {model}", "client", _asked(operation, request, vendor, streams))
    told = ModelSpan(span, clock)
    try:
        yield told
    except BaseException as error:
        told.broke_off(error)
        raise
    finally:
        span.end()


def tell_end(span: Span, error: BaseException) -> None:
    """Note in a span what ended it."""
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        span.set({semconv.OUTCOME: CANCELLED})
    else:
        span.fail(error.code if isinstance(error, ServiceError) else InternalError.code)


def _asked(
    operation: str,
    request: GenerationRequest | EmbeddingRequest,
    vendor: str,
    streams: bool,  # noqa: FBT001 - by name
) -> dict[str, Value]:
    attributes: dict[str, Value] = {
        semconv.OPERATION: operation,
        semconv.PROVIDER_NAME: vendor,
        semconv.REQUEST_MODEL: request.model,
    }
    if isinstance(request, EmbeddingRequest):
        return attributes
    attributes[semconv.REQUEST_STREAM] = streams
    given: dict[str, int | float | None] = {
        semconv.REQUEST_MAX_TOKENS: request.max_tokens,
        semconv.REQUEST_TEMPERATURE: request.temperature,
        semconv.REQUEST_TOP_P: request.top_p,
        semconv.REQUEST_CHOICES: request.choices if request.choices != 1 else None,
    }
    attributes.update((name, value) for name, value in given.items() if value is not None)
    return attributes
