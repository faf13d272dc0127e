"""The two vendors behind one interface: how each reads, writes, refuses, and fails."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import orjson

from service.simulator import (
    anthropic_errors,
    anthropic_read,
    anthropic_write,
    openai_errors,
    openai_more,
    openai_read,
    openai_write,
)
from service.simulator.asks import Answer, Ask, Refusal
from service.simulator.faults import Wreckage
from service.simulator.ledger import ApiName, Call
from service.simulator.limits import Verdict, anthropic_headers, openai_headers
from service.simulator.plan import Script


class _WritePlain(Protocol):
    def __call__(self, ask: Ask, answer: Answer, identity: str, *, with_usage: bool) -> bytes: ...


class _WriteStream(Protocol):
    def __call__(self, ask: Ask, answer: Answer, identity: str, *, with_usage: bool) -> Script: ...


@dataclass(frozen=True, slots=True)
class Vendor:
    """Everything in which one vendor's API differs from the other's."""

    name: ApiName
    request_prefix: str
    read: Callable[[bytes], Ask]
    write_plain: _WritePlain
    write_stream: _WriteStream
    invalid: Callable[[str], Refusal]
    unauthenticated: Callable[[str | None], Refusal]
    unknown_url: Callable[[str, str], Refusal]
    wrong_method: Callable[[str, str, str], Refusal]
    over_limit: Callable[[Verdict, str, int], Refusal]
    fault: Callable[[str, float | None], Refusal]
    list_models: Callable[[], bytes]
    get_model: Callable[[str], bytes]
    wreckage: Wreckage
    stream_type: bytes

    def key_of(self, headers: dict[bytes, bytes]) -> str | None:
        """Return the key that a caller sent, as a bearer token or in `x-api-key`."""
        if (key := headers.get(b"x-api-key")) is not None and self.name == "anthropic":
            return key.decode("latin-1")
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        return token.decode("latin-1").strip() if scheme.lower() == b"bearer" else None

    def headers(self, call: Call, verdict: Verdict, processing_ms: float, wall_s: float) -> bytes:
        """Return the lines that the vendor adds to every answer."""
        if self.name == "openai":
            text = (
                f"x-request-id: {call.request_id}\r\n"
                "openai-organization: org-sim\r\nopenai-version: 2020-10-01\r\n"
                f"openai-processing-ms: {processing_ms:.0f}\r\n{openai_headers(verdict)}"
            )
        else:
            text = (
                f"request-id: {call.request_id}\r\nanthropic-organization-id: org-sim\r\n"
                f"{anthropic_headers(verdict, wall_s)}"
            )
        return text.encode("latin-1")

    def error_body(self, error: dict[str, object], call: Call) -> bytes:
        """Return the body in which an error object is sent."""
        if self.name == "openai":
            return orjson.dumps({"error": error})
        return orjson.dumps({"type": "error", "error": error, "request_id": call.request_id})


def _misshape_openai(answer: dict[str, Any]) -> None:
    answer.pop("choices", None)
    if "usage" in answer:
        answer["usage"] = {name: f"{count} tokens" for name, count in answer["usage"].items()}


def _misshape_anthropic(answer: dict[str, Any]) -> None:
    answer.pop("content", None)
    if "usage" in answer:
        answer["usage"] = {name: f"{count} tokens" for name, count in answer["usage"].items()}


_OPENAI_ERROR: Final = orjson.dumps({"error": openai_errors.SERVER_ERROR})
_ANTHROPIC_ERROR: Final = orjson.dumps({"type": "error", "error": anthropic_errors.OVERLOADED})

OPENAI: Final = Vendor(
    name="openai",
    request_prefix="req_",
    read=openai_read.read_chat,
    write_plain=openai_write.write_plain,
    write_stream=openai_write.write_stream,
    invalid=openai_errors.invalid,
    unauthenticated=openai_errors.unauthenticated,
    unknown_url=openai_errors.unknown_url,
    wrong_method=openai_errors.wrong_method,
    over_limit=openai_errors.over_limit,
    fault=openai_errors.fault,
    list_models=openai_more.list_models,
    get_model=openai_more.get_model,
    wreckage=Wreckage(
        error_body=_OPENAI_ERROR,
        error_event=b"data: " + _OPENAI_ERROR + b"\n\n",
        misshapen_event=b'data: {"object":"chat.completion.chunk","choices":{"delta":"text"}}\n\n',
        misshape=_misshape_openai,
    ),
    stream_type=b"text/event-stream; charset=utf-8",
)
ANTHROPIC: Final = Vendor(
    name="anthropic",
    request_prefix="req_",
    read=anthropic_read.read_messages,
    write_plain=anthropic_write.write_plain,
    write_stream=anthropic_write.write_stream,
    invalid=anthropic_errors.invalid,
    unauthenticated=anthropic_errors.unauthenticated,
    unknown_url=anthropic_errors.unknown_url,
    wrong_method=anthropic_errors.wrong_method,
    over_limit=anthropic_errors.over_limit,
    fault=anthropic_errors.fault,
    list_models=anthropic_write.list_models,
    get_model=anthropic_write.get_model,
    wreckage=Wreckage(
        error_body=_ANTHROPIC_ERROR,
        error_event=b"event: error\ndata: " + _ANTHROPIC_ERROR + b"\n\n",
        misshapen_event=b'event: content_block_delta\ndata: {"type":"content_block_delta","index":"first"}\n\n',
        misshape=_misshape_anthropic,
    ),
    stream_type=b"text/event-stream; charset=utf-8",
)
