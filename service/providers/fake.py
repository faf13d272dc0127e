"""A provider without an upstream, for tests: it answers as it is told, and streams as slowly as it is stepped."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import orjson

from service.domain.clock import Deadline, SystemClock
from service.domain.generation import (
    Choice,
    Chunk,
    Completion,
    Delta,
    Dialect,
    EmbeddingRequest,
    EmbeddingResult,
    FinishReason,
    GenerationRequest,
    Usage,
)
from service.errors import ServiceError, UpstreamError, UpstreamInvalid
from service.providers.base import ProviderKey
from service.providers.keys import KeyRing

USAGE = Usage(input_tokens=5, output_tokens=3)
"""What a call takes if its script says nothing else."""


@dataclass(frozen=True, slots=True)
class Script:
    """What happens in one call.

    A stream gives ``pieces`` in turn, raising those that are errors, and ends with a chunk that has ``finish_reason``
    and ``usage``. A plain call joins the texts and raises the first error.
    """

    pieces: Sequence[str | Chunk | ServiceError] = ("Hello", ", ", "world")
    finish_reason: FinishReason | None = FinishReason.STOP
    """None ends the stream without one, which is an ``UpstreamInvalid``."""
    usage: Usage = USAGE
    before: ServiceError | None = None
    """Raised before anything is given: a stream fails while it is entered."""
    stepped: bool = False
    """Whether each piece, and the end, waits for :meth:`FakeCall.step`."""


@dataclass(slots=True)
class FakeCall:
    """One call that was made."""

    request: GenerationRequest | EmbeddingRequest
    upstream_model: str
    deadline: Deadline
    key: ProviderKey | None
    """The one that it was made with."""
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once a stream was entered."""
    waiting: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while the call waits for a step."""
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the call is over, also by cancellation."""
    ended: bool = False
    """Whether it came to its own end, or to its error."""
    cancelled: bool = False
    """Whether it was left before that."""
    _steps: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    def step(self, count: int = 1) -> None:
        """Let a stepped call go on by ``count`` pieces."""
        for _ in range(count):
            self._steps.release()

    async def until_stepped(self) -> None:
        """Wait for the next step."""
        self.waiting.set()
        try:
            await self._steps.acquire()
        finally:
            self.waiting.clear()


class FakeProvider:
    """Obeys :class:`service.providers.base.Provider`. Scripts given in advance serve one call each, then ``script``.

    A key that is in ``refusals`` gets that error; what the call's script holds is left for the next.
    """

    def __init__(
        self,
        name: str = "fake",
        *,
        script: Script | None = None,
        scripts: Iterable[Script] = (),
        keys: KeyRing | None = None,
    ) -> None:
        self._name = name
        self.keys = keys or KeyRing(provider=name, keys=(), files=(), clock=SystemClock(), forgiving=True)
        self.refusals: dict[str | None, ServiceError] = {}
        self.script = script or Script()
        self.scripts = deque(scripts)
        self.calls: list[FakeCall] = []
        self._called = asyncio.Condition()

    @property
    def name(self) -> str:
        """See :class:`service.providers.base.Provider`."""
        return self._name

    async def call(self, number: int = 0) -> FakeCall:
        """Wait for the call with this number, from 0."""
        async with self._called:
            await self._called.wait_for(lambda: len(self.calls) > number)
        return self.calls[number]

    async def complete(
        self, request: GenerationRequest, *, upstream_model: str, deadline: Deadline, key: ProviderKey | None = None
    ) -> Completion:
        """See :class:`service.providers.base.Provider`."""
        async with self._new_call(request, upstream_model, deadline, key) as (call, script):
            text = ""
            for piece in script.pieces:
                if script.stepped:
                    await call.until_stepped()
                if isinstance(piece, ServiceError):
                    raise piece
                text += piece.text if isinstance(piece, Chunk) else piece
            if script.finish_reason is None:
                raise UpstreamInvalid("the answer has no finish reason", provider=self._name)
            return Completion(
                model=upstream_model,
                choices=tuple(Choice(text, script.finish_reason) for _ in range(request.choices)),
                usage=script.usage,
                response_id=f"fake-{len(self.calls)}",
            )

    @asynccontextmanager
    async def stream(
        self, request: GenerationRequest, *, upstream_model: str, deadline: Deadline, key: ProviderKey | None = None
    ) -> AsyncIterator[AsyncIterator[Chunk]]:
        """See :class:`service.providers.base.Provider`."""
        async with self._new_call(request, upstream_model, deadline, key) as (call, script):
            call.opened.set()
            chunks = self._chunks(call, script, upstream_model)
            try:
                yield chunks
            finally:
                call.cancelled = not call.ended
                await chunks.aclose()

    async def embed(
        self, request: EmbeddingRequest, *, upstream_model: str, deadline: Deadline, key: ProviderKey | None = None
    ) -> EmbeddingResult:
        """Give each text the same vector of three numbers."""
        async with self._new_call(request, upstream_model, deadline, key) as (_, script):
            given = request.fields.get("input")
            count = len(given) if isinstance(given, list) else 1
            data = [{"object": "embedding", "index": index, "embedding": [0.1, 0.2, 0.3]} for index in range(count)]
            usage = {"prompt_tokens": script.usage.input_tokens, "total_tokens": script.usage.input_tokens}
            raw = orjson.dumps({"object": "list", "data": data, "model": upstream_model, "usage": usage})
            return EmbeddingResult(raw, Usage(script.usage.input_tokens, 0))

    @asynccontextmanager
    async def _new_call(
        self,
        request: GenerationRequest | EmbeddingRequest,
        upstream_model: str,
        deadline: Deadline,
        key: ProviderKey | None,
    ) -> AsyncIterator[tuple[FakeCall, Script]]:
        key = key or self.keys.take(upstream_model)
        call = FakeCall(request, upstream_model, deadline, key)
        refusal = self.refusals.get(None if key is None else key.secret)
        if refusal is not None:
            script = Script(before=refusal)
        else:
            script = self.scripts.popleft() if self.scripts else self.script
        async with self._called:
            self.calls.append(call)
            self._called.notify_all()
        try:
            if script.before is not None:
                raise script.before
            if key is not None:
                self.keys.accepted(key)
            yield call, script
        except UpstreamError as error:
            if key is not None:
                self.keys.note(key, upstream_model, error)
            raise
        except asyncio.CancelledError:
            call.cancelled = True
            raise
        finally:
            call.closed.set()

    async def _chunks(self, call: FakeCall, script: Script, model: str) -> AsyncGenerator[Chunk, None]:
        response_id: str | None = f"fake-{len(self.calls)}"
        for piece in script.pieces:
            if script.stepped:
                await call.until_stepped()
            if isinstance(piece, ServiceError):
                call.ended = True
                raise piece
            if isinstance(piece, Chunk):
                yield piece
            else:
                yield _chunk(Delta(text=piece), response_id=response_id, model=model)
            response_id = None
        if script.stepped:
            await call.until_stepped()
        if script.finish_reason is None:
            call.ended = True
            raise UpstreamInvalid("the stream ended without a finish reason", provider=self._name)
        last = Delta(finish_reason=script.finish_reason)
        yield _chunk(last, usage=script.usage, response_id=response_id, model=model)
        call.ended = True


def _chunk(delta: Delta, *, response_id: str | None, model: str, usage: Usage | None = None) -> Chunk:
    """Make a chunk with the bytes that an OpenAI-compatible server would have sent for it."""
    event = {
        "id": response_id or "fake",
        "object": "chat.completion.chunk",
        "created": 1_800_000_000,
        "model": model,
        "choices": [
            {
                "index": delta.choice,
                "delta": {"content": delta.text} if delta.text else {},
                "finish_reason": delta.finish_reason,
            }
        ],
    }
    return Chunk(
        raw=b"data: " + orjson.dumps(event) + b"\n\n",
        dialect=Dialect.OPENAI,
        deltas=(delta,),
        usage=usage,
        response_id=response_id,
        model=model if response_id else None,
    )
