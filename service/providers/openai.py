"""OpenAI, and every server with its API.

The official SDK builds the client and so owns base URL, authentication and default headers. It sends nothing itself:
its object for each chunk costs more than all the rest of a stream.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

import msgspec
import openai
import orjson
from yarl import URL

from service.config import ProviderSettings
from service.domain.clock import Deadline
from service.domain.estimates import input_size, size_of, tokens_in
from service.domain.generation import (
    Chunk,
    Completion,
    Delta,
    EmbeddingRequest,
    EmbeddingResult,
    GenerationRequest,
    Usage,
)
from service.errors import UpstreamError, UpstreamInvalid, UpstreamMisconfigured
from service.providers.allowance import read_openai
from service.providers.base import KeyPool, ProviderKey
from service.providers.event_stream import Event, EventReader
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
from service.providers.openai_wire import (
    WireEvent,
    checked_embeddings,
    completion_of,
    decode_completion,
    decode_event,
    delta_of,
    request_fields,
    usage_of,
)
from service.providers.surrogates import SurrogateJoiner
from service.providers.wire import SchemaError, invalid_answer

NO_KEY = "none"
"""Sent to servers that need no key: the SDK insists on one."""

_OUT_OF_FUNDS = frozenset(
    {
        "insufficient_quota",
        "credit_balance_exhausted",
        "organization_spend_limit_exceeded",
        "project_spend_limit_exceeded",
        "organization_usage_limit_exceeded",
        "billing_hard_limit_reached",
    }
)
"""Codes of a 429 that no waiting heals (OpenAI, "Error codes", as of 2026-11)."""

_REFUSED_KEYS = frozenset({"API_KEY_INVALID", "API_KEY_SERVICE_BLOCKED", "API_KEY_IP_ADDRESS_BLOCKED"})
"""Reasons in the ``details`` of an error, by which Google's APIs say that it is the key which is refused, with a 400 or
403 that others have for requests (google.rpc.ErrorInfo, ``google/api/error_reason.proto``, as of 2026-11)."""

_STATUS_OF_CODE: Mapping[str, int] = {
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "slow_down": 429,
    "invalid_request_error": 400,
    "context_length_exceeded": 400,
    "content_filter": 400,
    "content_policy_violation": 400,
    "authentication_error": 401,
    "invalid_api_key": 401,
    "permission_error": 403,
    "model_not_found": 404,
    "not_found_error": 404,
}
"""What stands for the status of an error inside a 200."""


def refusal_error(
    status: int, headers: Mapping[str, str], body: bytes, *, provider: str, rejects_with_500: bool = False
) -> UpstreamError:
    """Make an error of what the API said instead of an answer, by status and code alone.

    A success without an error in its body is ``UpstreamInvalid``. ``rejects_with_500`` is for a server that refuses a
    request with a 500 and a reason, where others have a 400.
    """
    error = _error_object(body)
    if rejects_with_500 and status == 500 and error is not None:  # noqa: PLR2004
        status = 400
    if error is None and 200 <= status < 300:  # noqa: PLR2004 - RFC 9110 section 15.3
        return UpstreamInvalid("the provider's answer breaks its schema", provider=provider, upstream_status=status)
    return _classified(status, error or {}, retry_after_s(headers), provider)


def _error_object(body: bytes) -> Mapping[str, Any] | None:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if isinstance(value, list) and value:
        value = value[0]  # Google's servers
    if not isinstance(value, dict):
        return None
    error = value.get("error")
    if isinstance(error, dict):
        return error
    if isinstance(error, str):
        return {"message": error}
    # Servers built on FastAPI or on vLLM's older error form.
    if isinstance(value.get("detail"), str):
        return {"message": value["detail"]}
    return value if value.get("object") == "error" else None


def _reason_in(error: Mapping[str, Any]) -> str | None:
    details = error.get("details")
    if not isinstance(details, list):
        return None
    reasons = (detail.get("reason") for detail in details if isinstance(detail, dict))
    return next((reason for reason in reasons if isinstance(reason, str)), None)


def _classified(status: int, error: Mapping[str, Any], retry_after: float | None, provider: str) -> UpstreamError:
    number = error.get("code")
    code, kind = text_of(error.get("code"), limit=100), text_of(error.get("type"), limit=100)
    if status < 300:  # noqa: PLR2004 - an error inside a 200: OpenRouter and llama.cpp put a status into the code
        fallback = number if isinstance(number, int) and 400 <= number < 600 else 500  # noqa: PLR2004
        status = _STATUS_OF_CODE.get(code) or _STATUS_OF_CODE.get(kind) or fallback
        status = 429 if {code, kind} & _OUT_OF_FUNDS else status
    if status == 503 and "slow_down" in {code, kind}:  # noqa: PLR2004
        status = 429
    reason = _reason_in(error)
    if 400 <= status < 500 and reason in _REFUSED_KEYS:  # noqa: PLR2004
        return UpstreamMisconfigured(
            f"the provider refuses our key ({reason})",
            provider=provider,
            upstream_status=status,
            upstream_code=reason,
            refused="key",
        )
    refusal = Refusal(
        status=status,
        code=code or None,
        type=kind or None,
        message=text_of(error.get("message")),
        retry_after_s=retry_after,
    )
    out_of_funds = status == 429 and {code, kind} & _OUT_OF_FUNDS  # noqa: PLR2004
    if out_of_funds or code == "model_not_found":
        return UpstreamMisconfigured(
            f"the provider refuses our account or model ({code or kind})",
            provider=provider,
            upstream_status=status,
            upstream_code=code or kind,
            refused="funds" if out_of_funds else "model",
        )
    return error_for_status(refusal, provider=provider)


def call_headers(call_id: str | None) -> Mapping[str, str]:
    """Return the header by which a call is found again (OpenAI, "Debugging requests", as of 2026-11)."""
    return NO_HEADERS if call_id is None else {"X-Client-Request-Id": call_id}


class OpenAIProvider:
    """Speaks chat completions and embeddings with one server."""

    def __init__(self, *, http: HttpUpstream, base_url: str, stop: Sequence[str] = ()) -> None:
        """``stop`` is added to the stop strings of every request."""
        self._http = http
        self._stop = tuple(stop)
        root = base_url.rstrip("/")
        self._chat_url = URL(f"{root}/chat/completions")
        self._embeddings_url = URL(f"{root}/embeddings")
        # OpenAI's reasoning models refuse max_tokens; most other servers know nothing else.
        self._max_tokens_field = "max_completion_tokens" if self._chat_url.host == "api.openai.com" else "max_tokens"

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
        fields = self._fields(request, upstream_model, stream=False)
        headers = call_headers(request.call_id)
        ask = self._http.keyed(Ask(self._chat_url, fields, headers, upstream_model, key))
        raw = await self._http.post(ask, deadline=deadline)
        try:
            wire = decode_completion(raw)
            if wire.error is None:
                raw.decode()  # what was skipped must be text too, before it is handed on
                return completion_of(wire, raw, upstream_model=upstream_model, input_bytes=input_size(request))
        except ValueError as exc:
            raise invalid_answer(exc, self.name) from exc
        raise self._http.noted(refusal_error(200, {}, raw, provider=self.name), ask.key, ask.model)

    def stream(
        self, request: GenerationRequest, *, upstream_model: str, deadline: Deadline, key: ProviderKey | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[Chunk]]:
        """See :class:`service.providers.base.Provider`."""
        decoder = OpenAIDecoder(
            provider=self.name,
            include_usage=request.include_usage,
            input_bytes=input_size(request),
            choices=request.choices,
        )
        fields = self._fields(request, upstream_model, stream=True)
        ask = Ask(self._chat_url, fields, call_headers(request.call_id), upstream_model, key)
        return self._http.stream(ask, decoder, deadline=deadline)

    async def embed(
        self, request: EmbeddingRequest, *, upstream_model: str, deadline: Deadline, key: ProviderKey | None = None
    ) -> EmbeddingResult:
        """See :class:`service.providers.base.Provider`."""
        fields = {**request.fields, "model": upstream_model}
        headers = call_headers(request.call_id)
        ask = self._http.keyed(Ask(self._embeddings_url, fields, headers, upstream_model, key))
        raw = await self._http.post(ask, deadline=deadline)
        try:
            wire = checked_embeddings(raw)
            if wire.error is None:
                raw.decode()
                estimate = Usage(_embedding_tokens(request.fields.get("input")), 0, estimated=True)
                return EmbeddingResult(raw, estimate if wire.usage is None else usage_of(wire.usage))
        except ValueError as exc:
            raise invalid_answer(exc, self.name) from exc
        raise self._http.noted(refusal_error(200, {}, raw, provider=self.name), ask.key, ask.model)

    def _fields(self, request: GenerationRequest, upstream_model: str, *, stream: bool) -> dict[str, Any]:
        fields = request_fields(
            request, upstream_model=upstream_model, stream=stream, max_tokens_field=self._max_tokens_field
        )
        if self._stop:
            asked = fields.get("stop") or ()
            fields["stop"] = [*self._stop, *((asked,) if isinstance(asked, str) else asked)]
        return fields


class OpenAIDecoder:
    """See :class:`service.providers.http.Decoder`."""

    def __init__(self, *, provider: str, include_usage: bool, input_bytes: int, choices: int) -> None:
        """Drop the event of usage alone from the raw bytes unless ``include_usage``.

        ``choices`` were asked for. A server may give fewer, but only its end marker says that it does.
        """
        self.started = False
        self.finished = False
        self.ended = False
        self.failure: UpstreamError | None = None
        self._provider = provider
        self._include_usage = include_usage
        self._input_bytes = input_bytes
        self._choices = choices
        self._reader = EventReader(provider=provider)
        self._seen: set[int] = set()
        self._done: set[int] = set()
        self._pieces = 0
        self._usage: Usage | None = None
        self._owes_usage = True
        self._introduced = False
        self._halves = SurrogateJoiner()

    def feed(self, data: bytes) -> Chunk | None:
        """See :class:`service.providers.http.Decoder`."""
        chunk = Chunk()
        raws: list[bytes] = []
        deltas: list[Delta] = []
        try:
            for event in self._reader.feed(data):
                if event.data == b"[DONE]":
                    self.ended = True
                    self.finished = bool(self._done) and len(self._done) == len(self._seen)
                    break
                self._take(event, chunk, raws, deltas)
        except UpstreamError as exc:
            self.failure = exc
        except ValueError as exc:
            self.failure = invalid_answer(exc, self._provider)
        if self.finished and self._halves.waiting and self.failure is None:
            self.finished = False
            self.failure = invalid_answer(SchemaError("the text ends with half a character"), self._provider)
        if self.finished and self._usage is not None:
            chunk.usage = self._usage
            self._usage = None
            self._owes_usage = False
        if not raws and not deltas and chunk.usage is None:
            return None
        chunk.raw = b"".join(raws)
        chunk.deltas = tuple(deltas)
        return chunk

    def rest(self) -> Chunk | None:
        """See :class:`service.providers.http.Decoder`."""
        if not self._owes_usage:
            return None
        self._owes_usage = False
        return Chunk(usage=Usage(tokens_in(self._input_bytes), self._pieces, estimated=True))

    def _take(self, event: Event, chunk: Chunk, raws: list[bytes], deltas: list[Delta]) -> None:
        data = event.data
        if not data.isascii():
            data.decode()  # the parts that decode_event skips must be text too, before they are handed on
        wire, event = self._decoded(event)
        choices = wire.choices
        if not choices or wire.error is not None:
            self._take_other(wire, event, raws)
        else:
            for choice in choices:
                if (delta := delta_of(choice)) is not None:
                    deltas.append(delta)
                    self._note(delta)
                elif choice.index not in self._seen:
                    self._open(choice.index)
            raws.append(event.raw)
        if wire.usage is not None:
            self._usage = usage_of(wire.usage)
        if not self._introduced and wire.id:
            self._introduced = True
            chunk.response_id = wire.id
            chunk.model = wire.model

    def _decoded(self, event: Event) -> tuple[WireEvent, Event]:
        """Parse an event; where it holds half a character, return another one in its place that holds whole ones."""
        if not self._halves.waiting:
            try:
                return decode_event(event.data), event
            except msgspec.ValidationError:
                raise
            except msgspec.DecodeError:
                pass  # not JSON, as the joiner will find too, or half a character
        data = self._halves.join(event.data)
        return decode_event(data), Event(event.name, data, b"data: " + data + b"\n\n")

    def _take_other(self, wire: WireEvent, event: Event, raws: list[bytes]) -> None:
        """Take an event that adds to no choice."""
        if wire.error is not None:
            raise refusal_error(200, {}, event.data, provider=self._provider)
        if wire.choices is None and wire.usage is None:
            raise SchemaError("an event has neither choices nor usage")
        if wire.usage is None or self._include_usage:
            raws.append(event.raw)

    def _note(self, delta: Delta) -> None:
        self.started = True
        index = delta.choice
        if index not in self._seen:
            self._open(index)
        if delta.finish_reason is not None:
            self._done.add(index)
            self.finished = len(self._done) >= max(self._choices, len(self._seen))
        if delta.text or delta.reasoning or delta.refusal or delta.tool_calls:
            self._pieces += 1

    def _open(self, index: int) -> None:
        self._seen.add(index)
        self.finished = False


def _embedding_tokens(value: object) -> int:
    """Guess the tokens of an embedding request's input: texts, or lists of tokens."""
    if isinstance(value, str):
        return tokens_in(size_of(value))
    if isinstance(value, Sequence):
        return sum(1 if isinstance(item, int) else _embedding_tokens(item) for item in value)
    return 0


@asynccontextmanager
async def open_openai(
    name: str,
    settings: ProviderSettings,
    *,
    base_url: str | None,
    keys: KeyRing,
    stop: Sequence[str] = (),
    keep_alive: bool = True,
    rejects_with_500: bool = False,
) -> AsyncIterator[OpenAIProvider]:
    """Open the provider ``name`` at ``base_url``; None is the SDK's own address. See :func:`refusal_error`."""
    async with openai.AsyncOpenAI(api_key=NO_KEY, base_url=base_url, max_retries=0) as client:

        def headers_for(key: str | None) -> Mapping[str, object]:
            keyed = client.copy(api_key=key or NO_KEY)
            return {**keyed.default_headers, **keyed.auth_headers}

        async with open_upstream(
            provider=name,
            timeouts_s=settings.timeouts_s,
            keys=keys,
            headers=SdkHeaders(headers_for),
            refused=partial(refusal_error, provider=name, rejects_with_500=rejects_with_500),
            left=read_openai,
            keep_alive=keep_alive,
            propagate_trace=settings.propagate_trace,
        ) as http:
            yield OpenAIProvider(http=http, base_url=str(client.base_url), stop=stop)
