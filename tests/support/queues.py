"""Light clients that ask processes of the service at a pace of the test's, and note what became of each request."""

import asyncio
import json
import random
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

import httpx

PATIENCE_S = 60.0
"""How long a client waits for the end of an answer; only a request that hangs takes it."""
HUNG, CUT = "hung", "cut"
"""Codes of what came to no end: in time, and by the connection."""

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, slots=True)
class Question:
    """One request; whoever asks it again sends the same bytes."""

    key: str
    prompt: str
    model: str
    max_tokens: int = 16
    streamed: bool = False
    timeout_ms: int | None = None

    def request(self) -> bytes:
        """Write it."""
        path = "/chat" if self.streamed else "/generate"
        body: dict[str, Any] = {"model": self.model, "max_tokens": self.max_tokens}
        if self.streamed:
            body |= {"messages": [{"role": "user", "content": self.prompt}], "stream": True}
        else:
            body["prompt"] = self.prompt
        data = json.dumps(body).encode()
        lines = [
            f"POST {path} HTTP/1.1",
            "host: 127.0.0.1",
            "content-type: application/json",
            f"content-length: {len(data)}",
            f"authorization: Bearer {self.key}",
        ]
        if self.timeout_ms is not None:
            lines.append(f"x-request-timeout-ms: {self.timeout_ms}")
        return "\r\n".join((*lines, "", "")).encode() + data


@dataclass(slots=True)
class Outcome:
    """What became of one request. Instants are seconds of the monotonic clock, as in the simulator's ledger."""

    question: Question
    due_at: float
    """When it was meant to be sent."""
    sent_at: float = 0.0
    status: int = 0
    """The answer's; where a stream ended with an error event, that one's; 0 where no answer came."""
    code: str = ""
    """Of a failure; empty where the answer is whole."""
    retry_after_s: float | None = None
    in_stream: bool = False
    """Whether the failure came as an event of a stream."""
    first_at: float | None = None
    """When the first content was received."""
    ended_at: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0

    @property
    def is_served(self) -> bool:
        """Whether all of an answer came."""
        return self.status == 200 and not self.code

    @property
    def is_refusal(self) -> bool:
        """Whether the queue refused it as it should: with 503, and the time to come again."""
        return self.status == 503 and self.code == "overloaded" and self.retry_after_s is not None

    @property
    def virtual_tokens(self) -> int:
        """What it counts as in the fair share of a provider."""
        return self.input_tokens + 2 * self.output_tokens


class Caller:
    """Clients of some processes, over connections that are kept; each request goes to any of the processes."""

    def __init__(self, ports: Sequence[int], chance: random.Random | None = None) -> None:
        self._ports = ports
        self._chance = chance or random.Random(1)  # noqa: S311 - so that a failure can be had again
        self._idle: dict[int, deque[Stream]] = {port: deque() for port in ports}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for streams in self._idle.values():
            for stream in streams:
                stream[1].transport.abort()

    async def ask(self, question: Question, due_at: float | None = None) -> Outcome:
        """Send a request and read its answer. Cancelled, the client leaves with a reset."""
        now = time.monotonic()
        outcome = Outcome(question, now if due_at is None else due_at, sent_at=now)
        port = self._chance.choice(self._ports)
        idle = self._idle[port]
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(PATIENCE_S):
                stream = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", port)
                reader, writer = stream
                writer.write(question.request())
                await _read(reader, outcome)
        except TimeoutError:
            outcome.status, outcome.code = 0, HUNG
        except (OSError, EOFError, ValueError):
            outcome.status, outcome.code = 0, CUT
        else:
            idle.append(stream)
            writer = None
        finally:
            outcome.ended_at = time.monotonic()
            if writer is not None:
                writer.transport.abort()
        return outcome


async def _read(reader: asyncio.StreamReader, outcome: Outcome) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    status, *lines = head.split("\r\n")
    outcome.status = int(status.split()[1])
    headers = dict(line.split(": ", 1) for line in lines if line)
    if "retry-after" in headers:
        outcome.retry_after_s = float(headers["retry-after"])
    if headers.get("transfer-encoding") == "chunked":
        await _read_events(reader, outcome)
        return
    body = json.loads(await reader.readexactly(int(headers["content-length"])))
    if outcome.status != 200:
        outcome.code = body["code"]
        return
    outcome.first_at = time.monotonic()
    outcome.input_tokens, outcome.output_tokens = body["prompt_tokens"], body["completion_tokens"]


async def _read_events(reader: asyncio.StreamReader, outcome: Outcome) -> None:
    rest = b""
    outcome.code = CUT  # until the end mark
    while size := int(await reader.readline(), 16):
        *blocks, rest = (rest + (await reader.readexactly(size + 2))[:-2]).split(b"\n\n")
        for block in blocks:
            _take(block, outcome)
    await reader.readline()


def _take(block: bytes, outcome: Outcome) -> None:
    lines = [line for line in block.split(b"\n") if not line.startswith(b":")]
    if not lines:
        return
    if lines[0] == b"event: error":
        failure = json.loads(lines[1].removeprefix(b"data: "))
        outcome.status, outcome.code, outcome.in_stream = failure["status"], failure["code"], True
        outcome.retry_after_s = failure.get("retry_after_s")
    elif lines[0] == b"event: usage":
        usage = json.loads(lines[1].removeprefix(b"data: "))
        outcome.input_tokens, outcome.output_tokens = usage["prompt_tokens"], usage["completion_tokens"]
    elif lines == [b"data: [DONE]"]:
        outcome.code = ""
    elif outcome.first_at is None:
        outcome.first_at = time.monotonic()


async def open_loop(
    rate: float, length_s: float, send: Callable[[float], Awaitable[object]], *, chance: random.Random
) -> None:
    """Begin so many a second, each at a random moment of its slot, whatever became of others; return after all."""
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number in range(round(rate * length_s)):
            due_at = began + (number + chance.random()) / rate
            await asyncio.sleep(max(0.0, due_at - time.monotonic()))
            group.create_task(_run(send, due_at))


async def _run(send: Callable[[float], Awaitable[object]], due_at: float) -> None:
    await send(due_at)


@dataclass
class Backlog:
    """Clients of one principal that ask one after the other, so that some always wait."""

    caller: Caller
    questions: Callable[[int], Question]
    """Makes the n-th."""
    clients: int
    outcomes: list[Outcome] = field(default_factory=list)
    _asked: int = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Ask until told to stop; return when all are answered."""
        await asyncio.gather(*(self._client(stop) for _ in range(self.clients)))

    def served(self, since: float, until: float) -> list[Outcome]:
        """Return what was answered in a time."""
        return [outcome for outcome in self.outcomes if outcome.is_served and since <= outcome.ended_at < until]

    async def _client(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            self._asked += 1
            outcome = await self.caller.ask(self.questions(self._asked))
            self.outcomes.append(outcome)
            if not outcome.is_served:
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), outcome.retry_after_s or 0.1)


def tally(outcomes: Iterable[Outcome]) -> Counter[str]:
    """Count what became of requests."""
    return Counter(
        "served"
        if outcome.is_served
        else f"{outcome.status} {outcome.code}{' in its stream' if outcome.in_stream else ''}"
        for outcome in outcomes
    )


class SimulatorHands:
    """What a test may do to a simulator beside calling it."""

    def __init__(self, address: str) -> None:
        self._client = httpx.AsyncClient(base_url=address, trust_env=False, timeout=30)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def reset(self, **options: Any) -> None:
        """Begin anew: full buckets, an empty ledger, and these options."""
        (await self._client.delete("/control")).raise_for_status()
        (await self._client.post("/control", json=options)).raise_for_status()

    async def calls(self) -> list[dict[str, Any]]:
        """Return the ledger, oldest first."""
        answer = await self._client.get("/ledger")
        calls: list[dict[str, Any]] = answer.raise_for_status().json()
        return calls
