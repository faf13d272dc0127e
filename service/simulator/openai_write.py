"""Writes answers as OpenAI chat completions, whole or as server-sent events."""

import time
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any, Final

import orjson

from service.simulator.asks import Answer, Ask, Choice, ToolCall
from service.simulator.plan import Frame, Script
from service.simulator.text import digest

FINGERPRINT: Final = "fp_simulated"
_FINISH: Final = {"stop": "stop", "length": "length", "stop_sequence": "stop", "tools": "tool_calls"}
DONE: Final = b"data: [DONE]\n\n"


def write_plain(ask: Ask, answer: Answer, identity: str, *, with_usage: bool) -> bytes:
    """Return the body of a chat completion."""
    body = {
        "id": f"chatcmpl-{identity}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": ask.model,
        "choices": [
            {
                "index": index,
                "message": _message(choice),
                "logprobs": _logprobs(choice.pieces, ask.top_logprobs),
                "finish_reason": _FINISH[choice.finish],
            }
            for index, choice in enumerate(answer.choices)
        ],
        "usage": usage(answer),
        "service_tier": "default",
        "system_fingerprint": FINGERPRINT,
    }
    if not with_usage:
        del body["usage"]
    return orjson.dumps(body)


def write_stream(ask: Ask, answer: Answer, identity: str, *, with_usage: bool) -> Script:
    """Return the events of a streamed chat completion; those of several choices take turns."""
    lead = orjson.dumps(
        {
            "id": f"chatcmpl-{identity}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": ask.model,
            "service_tier": "default",
            "system_fingerprint": FINGERPRINT,
        }
    )
    lead = b"data: " + lead[:-1]
    counted = ask.include_usage and with_usage
    end = b',"usage":null}\n\n' if counted else b"}\n\n"
    streams = [_Chunks(lead + b',"choices":[{"index":%d,"delta":' % at, end) for at in range(len(answer.choices))]
    preamble = b"".join(
        chunks.lead
        + (b'{"role":"assistant","content":null' if choice.calls else b'{"role":"assistant","content":""')
        + b',"refusal":null},"logprobs":null,"finish_reason":null}]'
        + end
        for chunks, choice in zip(streams, answer.choices, strict=True)
    )
    closing = lead + b',"choices":[],"usage":' + orjson.dumps(usage(answer)) + b"}\n\n" if counted else b""
    if len(streams) == 1:
        content = streams[0].content(answer.choices[0], ask.top_logprobs)
    else:
        content = _take_turns(
            [chunks.content(choice, ask.top_logprobs) for chunks, choice in zip(streams, answer.choices, strict=True)]
        )
    return Script(preamble, _close(content, closing + DONE), max(choice.chunks for choice in answer.choices))


class _Chunks:
    """The events of one choice: all that is the same in each of them is joined once."""

    __slots__ = ("end", "lead")

    def __init__(self, lead: bytes, end: bytes) -> None:
        self.lead = lead
        self.end = end

    def content(self, choice: Choice, top_logprobs: int | None) -> Iterator[Frame]:
        lead, end, dumps = self.lead, self.end, orjson.dumps
        tail = b',"finish_reason":null}]' + end
        if top_logprobs is None:
            plain_lead, plain_tail = lead + b'{"content":', b'},"logprobs":null' + tail
            for piece in choice.pieces:
                yield plain_lead + dumps(piece) + plain_tail, 1
        else:
            for piece in choice.pieces:
                odds = dumps(_logprobs([piece], top_logprobs))
                yield lead + b'{"content":' + dumps(piece) + b'},"logprobs":' + odds + tail, 1
        for at, call in enumerate(choice.calls):
            shown = {"index": at, **_tool_call(call, "")}
            yield lead + dumps({"tool_calls": [shown]}) + b',"logprobs":null' + tail, 1
            for fragment in call.fragments:
                delta = dumps({"tool_calls": [{"index": at, "function": {"arguments": fragment}}]})
                yield lead + delta + b',"logprobs":null' + tail, 1
        yield lead + b'{},"logprobs":null,"finish_reason":"%b"}]' % _FINISH[choice.finish].encode() + end, 0


def _take_turns(streams: list[Iterator[Frame]]) -> Iterator[Frame]:
    for turn in zip_longest(*streams, fillvalue=(b"", 0)):
        yield b"".join(data for data, _ in turn), sum(tokens for _, tokens in turn)


def _close(content: Iterator[Frame], closing: bytes) -> Iterator[Frame]:
    yield from content
    yield closing, 0


def usage(answer: Answer) -> dict[str, Any]:
    """Return the usage object of a chat completion."""
    return {
        "prompt_tokens": answer.input_tokens,
        "completion_tokens": answer.output_tokens,
        "total_tokens": answer.input_tokens + answer.output_tokens,
        "prompt_tokens_details": {"cached_tokens": answer.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _message(choice: Choice) -> dict[str, Any]:
    if not choice.calls:
        return {"role": "assistant", "content": "".join(choice.pieces), "refusal": None, "annotations": []}
    calls = [_tool_call(call, "".join(call.fragments)) for call in choice.calls]
    return {"role": "assistant", "content": None, "refusal": None, "tool_calls": calls, "annotations": []}


def _tool_call(call: ToolCall, arguments: str) -> dict[str, Any]:
    return {
        "id": f"call_{call.number:016x}",
        "type": "function",
        "function": {"name": call.name, "arguments": arguments},
    }


def _logprobs(pieces: list[str], top: int | None) -> dict[str, Any] | None:
    if top is None:
        return None
    return {"content": [_logprob(piece, top) for piece in pieces], "refusal": None}


def _logprob(piece: str, top: int) -> dict[str, Any]:
    """Return odds that are a function of the token; the alternatives are ever less likely."""
    likely = -(digest(piece) % 1000) / 1000
    entry = {"token": piece, "logprob": likely, "bytes": list(piece.encode())}
    others = [
        {"token": f"{piece}{rank}", "logprob": likely - rank, "bytes": list(f"{piece}{rank}".encode())}
        for rank in range(1, top)
    ]
    return {**entry, "top_logprobs": [entry, *others] if top else []}
