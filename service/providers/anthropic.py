"""Anthropic, and every server with its Messages API.

The official SDK builds the client and so owns base URL, authentication and default headers (the version among them). It
sends nothing itself: its object for each event costs more than all the rest of a stream.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

import anthropic
import orjson
from yarl import URL

from service.config import ProviderSettings
from service.domain.clock import Deadline
from service.domain.estimates import input_size
from service.domain.generation import (
    Chunk,
    Completion,
    Delta,
    Dialect,
    EmbeddingRequest,
    EmbeddingResult,
    GenerationRequest,
    ToolCallDelta,
)
from service.errors import InvalidRequest, UpstreamError, UpstreamInvalid, UpstreamMisconfigured
from service.providers.allowance import read_anthropic
from service.providers.anthropic_wire import (
    WireBlock,
    WireEvent,
    WireUsage,
    arguments_of,
    completion_of,
    decode_event,
    decode_message,
    finish_reason,
    request_fields,
    usage_of,
)
from service.providers.base import KeyPool, ProviderKey
from service.providers.event_stream import EventReader
from service.providers.http import (
    NO_HEADERS,
    Ask,
    HttpUpstream,
    Refusal,
    error_for_status,
    open_upstream,
    retry_after_s,
    text_of,
)
from service.providers.keys import KeyRing, SdkHeaders
from service.providers.wire import SchemaError, invalid_answer

NO_KEY = "none"
"""Sent to servers that need no key: without one the SDK would look for credentials on this machine."""

SAMPLING_FIELDS = frozenset({"temperature", "top_p", "top_k"})
SAMPLING_VERSION = {"anthropic-version": "2023-06-01"}
"""The last version with them (Anthropic, "Versions", as of 2026-11)."""

_OUT_OF_FUNDS = frozenset(
    {
        "enforced_spend_limit_reached",
        "contract_spend_limit_reached",
        "linked_organization_spend_limit_reached",
        "linked_organization_billing_unavailable",
        "billing_error",
    }
)
"""Codes and types that no waiting heals (the SDK's ``types.shared``, 2.13)."""

_CREDIT_SPENT = "Your credit balance is too low to access the Anthropic API"
"""How the message of an account that is paid in advance begins when it is empty: a 400 ``invalid_request_error``, whose
type and code are those of any caller's mistake (Anthropic's API, as of 2026-11). The one text that is looked at."""

_STATUS_OF_TYPE: Mapping[str, int] = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "timeout_error": 504,
    "overloaded_error": 529,
}
"""What stands for the status of an error inside a 200 (Anthropic, "Errors", as of 2026-11); others stand for 500."""


def refusal_error(status: int, headers: Mapping[str, str], body: bytes, *, provider: str) -> UpstreamError:
    """Make an error of what the API said instead of an answer, by status and code, and by one text of theirs.

    A success without an error in its body is ``UpstreamInvalid``.
    """
    error = _error_object(body)
    inside_success = 200 <= status < 300  # noqa: PLR2004 - RFC 9110 section 15.3
    if error is None and inside_success:
        return UpstreamInvalid("the provider's answer breaks its schema", provider=provider, upstream_status=status)
    error = error or {}
    kind = text_of(error.get("type"), limit=100)
    details = error.get("details")
    code = text_of(details.get("error_code") if isinstance(details, dict) else None, limit=100)
    if inside_success:
        status = _STATUS_OF_TYPE.get(kind, 500)
    message = text_of(error.get("message"))
    is_spent = status == 400 and kind == "invalid_request_error" and message.startswith(_CREDIT_SPENT)  # noqa: PLR2004
    if is_spent or {code, kind} & _OUT_OF_FUNDS:
        return UpstreamMisconfigured(
            "the provider refuses our account (its credit is spent)"
            if is_spent
            else f"the provider refuses our account ({code or kind})",
            provider=provider,
            upstream_status=status,
            upstream_code="credit_balance_too_low" if is_spent else code or kind,
            refused="funds",
        )
    refusal = Refusal(
        status=status,
        code=code or None,
        type=kind or None,
        message=message,
        retry_after_s=retry_after_s(headers),
    )
    return error_for_status(refusal, provider=provider)


def _error_object(body: bytes) -> Mapping[str, Any] | None:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    error = value.get("error") if isinstance(value, dict) else None
    return error if isinstance(error, dict) else None


def version_headers(fields: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the header of the API version in which a body is valid, where that is not the SDK's own.

    Version 2026-10-21 took temperature, top_p and top_k away and refuses every body that has one of them. In the
    version before, models that still have a temperature obey it, and the others say for themselves what they take.
    """
    return SAMPLING_VERSION if SAMPLING_FIELDS & fields.keys() else NO_HEADERS


class AnthropicProvider:
    """Speaks the Messages API with one server."""

    def __init__(self, *, http: HttpUpstream, base_url: str) -> None:
        self._http = http
        # The settings name the version in every address; the SDK's own default does not.
        self._url = URL(base_url.rstrip("/").removesuffix("/v1") + "/v1/messages")

    @property
    def name(self) -> str:
        """See :class:`service.providers.base.Provider`."""
        return self._http.provider

    @property
    def keys(self) -> KeyPool:
        """See :class:`service.providers.base.Provider`."""
        return self._http.keys

    async def complete(
        self, request: GenerationRequest, *, upstream_model: str, deadline: Deadline, key: ProviderKey | None = None
    ) -> Completion:
        """See :class:`service.providers.base.Provider`."""
        fields = request_fields(request, upstream_model=upstream_model, stream=False)
        ask = self._http.keyed(Ask(self._url, fields, version_headers(fields), upstream_model, key))
        raw = await self._http.post(ask, deadline=deadline)
        try:
            wire = decode_message(raw)
            if wire.type == "message":
                raw.decode()  # what was skipped must be text too, before it is handed on
                return completion_of(wire, raw, upstream_model=upstream_model, input_bytes=input_size(request))
        except ValueError as exc:
            raise invalid_answer(exc, self.name) from exc
        raise self._http.noted(refusal_error(200, {}, raw, provider=self.name), ask.key, ask.model)

    def stream(
        self, request: GenerationRequest, *, upstream_model: str, deadline: Deadline, key: ProviderKey | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[Chunk]]:
        """See :class:`service.providers.base.Provider`."""
        fields = request_fields(request, upstream_model=upstream_model, stream=True)
        decoder = AnthropicDecoder(provider=self.name)
        ask = Ask(self._url, fields, version_headers(fields), upstream_model, key)
        return self._http.stream(ask, decoder, deadline=deadline)

    async def embed(
        self, request: EmbeddingRequest, *, upstream_model: str, deadline: Deadline, key: ProviderKey | None = None
    ) -> EmbeddingResult:
        """Refuse: the API has no embeddings."""
        del upstream_model, deadline, key
        raise InvalidRequest.at("model", f"{request.model}: its provider has no embeddings", kind="unsupported")


class AnthropicDecoder:
    """See :class:`service.providers.http.Decoder`.

    Strict about the head of the message and the figures that the API promises: the raw events go on to the vendor's
    SDK, which without them raises errors that its users do not catch.
    """

    def __init__(self, *, provider: str) -> None:
        self.started = False
        self.finished = False
        self.ended = False
        self.failure: UpstreamError | None = None
        self._provider = provider
        self._reader = EventReader(provider=provider)
        self._tools: dict[int, int] = {}
        """Number of each tool call, by the index of its block."""
        self._without_arguments: set[int] = set()
        """Indices of the open blocks that are tool calls and have no text of arguments yet."""
        self._first_usage: WireUsage | None = None
        """None before the head of the message."""

    def feed(self, data: bytes) -> Chunk | None:
        """See :class:`service.providers.http.Decoder`."""
        chunk = Chunk(dialect=Dialect.ANTHROPIC)
        raws: list[bytes] = []
        deltas: list[Delta] = []
        try:
            for event in self._reader.feed(data):
                if not event.data.isascii():
                    event.data.decode()  # the parts that decode_event skips must be text too, before they go on
                wire = decode_event(event.data)
                if wire.type == "message_stop":
                    self.ended = True
                    break
                if wire.type == "error":
                    raise refusal_error(200, {}, event.data, provider=self._provider)
                if wire.type == "ping":
                    continue
                if (delta := self._take(wire, chunk)) is not None:
                    deltas.append(delta)
                raws.append(event.raw)
        except UpstreamError as exc:
            self.failure = exc
        except ValueError as exc:
            self.failure = invalid_answer(exc, self._provider)
        if not raws:
            return None
        chunk.raw = b"".join(raws)
        chunk.deltas = tuple(deltas)
        return chunk

    def rest(self) -> Chunk | None:
        """See :class:`service.providers.http.Decoder`."""
        return None  # the figures come with the finish reason

    def _take(self, wire: WireEvent, chunk: Chunk) -> Delta | None:
        """Take what an event says; None if it adds nothing to the answer. Unknown events add nothing."""
        delta: Delta | None = None
        if wire.type == "message_start":
            self._head(wire, chunk)
        elif self._first_usage is None:
            raise SchemaError("the stream does not begin with message_start")
        elif wire.type == "content_block_delta":
            delta = self._block_delta(wire)
        elif wire.type == "content_block_start":
            if wire.content_block is None:
                raise SchemaError("content_block_start has no content_block")
            delta = self._block_start(wire.index, wire.content_block)
        elif wire.type == "content_block_stop":
            delta = self._block_stop(wire.index)
        elif wire.type == "message_delta":
            delta = self._message_delta(wire, chunk)
        if delta is not None:
            self.started = True
        return delta

    def _head(self, wire: WireEvent, chunk: Chunk) -> None:
        message = wire.message
        if message is None:
            raise SchemaError("message_start has no message")
        usage = message.usage
        if usage is None or usage.input_tokens is None or usage.output_tokens is None:
            raise SchemaError("message_start has no usage")
        self._first_usage = usage
        chunk.first_usage = usage_of(usage, None)
        chunk.response_id, chunk.model = message.id, message.model

    def _block_delta(self, wire: WireEvent) -> Delta | None:
        delta = wire.delta
        if delta is None:
            raise SchemaError("content_block_delta has no delta")
        if delta.text:
            return Delta(0, delta.text)
        if delta.partial_json and wire.index in self._tools:
            self._without_arguments.discard(wire.index)
            return Delta(tool_calls=(ToolCallDelta(self._tools[wire.index], arguments=delta.partial_json),))
        if delta.thinking:
            return Delta(reasoning=delta.thinking)
        return None

    def _block_start(self, index: int, block: WireBlock) -> Delta | None:
        if block.type == "tool_use":
            number = self._tools[index] = len(self._tools)
            arguments = arguments_of(block)
            if not arguments:
                self._without_arguments.add(index)
            return Delta(tool_calls=(ToolCallDelta(number, block.id, block.name, arguments),))
        if block.text and block.type == "text":
            return Delta(0, block.text)
        if block.thinking and block.type == "thinking":
            return Delta(reasoning=block.thinking)
        return None

    def _block_stop(self, index: int) -> Delta | None:
        if index not in self._without_arguments:
            return None
        # The vendor writes an empty object as no text at all; joined, the pieces must be JSON.
        self._without_arguments.discard(index)
        return Delta(tool_calls=(ToolCallDelta(self._tools[index], arguments="{}"),))

    def _message_delta(self, wire: WireEvent, chunk: Chunk) -> Delta | None:
        # Without a final figure the output count of the head would pass for the whole's.
        if wire.usage is None or wire.usage.output_tokens is None:
            raise SchemaError("message_delta has no usage")
        reason = finish_reason(None if wire.delta is None else wire.delta.stop_reason)
        if reason is None:
            return None
        chunk.usage = usage_of(self._first_usage, wire.usage)
        self.finished = True
        return Delta(finish_reason=reason)


@asynccontextmanager
async def open_anthropic(name: str, settings: ProviderSettings, *, keys: KeyRing) -> AsyncIterator[AnthropicProvider]:
    """Open the provider ``name``; the SDK's own address is taken if the settings have none."""
    address = None if settings.base_url is None else str(settings.base_url)
    async with anthropic.AsyncAnthropic(api_key=NO_KEY, base_url=address, max_retries=0) as client:

        def headers_for(key: str | None) -> Mapping[str, object]:
            keyed = client.copy(api_key=key or NO_KEY)
            return {**keyed.default_headers, **keyed.auth_headers}

        async with open_upstream(
            provider=name,
            timeouts_s=settings.timeouts_s,
            keys=keys,
            headers=SdkHeaders(headers_for),
            refused=partial(refusal_error, provider=name),
            left=read_anthropic,
            propagate_trace=settings.propagate_trace,
        ) as http:
            yield AnthropicProvider(http=http, base_url=str(client.base_url))
