"""Logs of resumable streams for tests, and what is written to them and read from them."""

import asyncio
import secrets
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import DEVNULL, Popen
from tempfile import TemporaryDirectory

from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from redis import Redis as BlockingRedis
from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.config import RedisSettings, StreamSettings
from service.domain.stream import StreamEvent, StreamRecord
from service.engine.stream_log import StreamLog
from service.storage.embedded import server_binary
from service.storage.redis import open_redis
from service.storage.redis_streams import RedisStreamLog
from service.telemetry.metrics import Metrics
from tests.support.redis_server import eventually

DEADLINE_S = 20.0
"""For what a correct program brings about in a fraction of a second, on a machine that may be busy."""
INTERRUPTION = b"event: error\ndata: interrupted\n\n"
CANCELLATION = b"event: error\ndata: cancelled\n\n"


@dataclass
class Owner:
    """The generation of one stream, as its log sees it."""

    log: StreamLog
    record: StreamRecord
    ends: list[bytes] = field(default_factory=list)
    """What it was told that ended it elsewhere."""
    told: asyncio.Event = field(default_factory=asyncio.Event)
    number: int = 0

    @property
    def id(self) -> str:
        return self.record.id

    def on_end(self, frame: bytes) -> None:
        self.ends.append(frame)
        self.told.set()

    def write(self, count: int, *, last: bool = False) -> list[StreamEvent]:
        """Append the next events, and return them."""
        events = [event(self.number + at) for at in range(1, count + 1)]
        self.number += count
        if last:
            events[-1] = events[-1]._replace(last=True)
        self.log.append(self.id, events)
        return events


async def begin(log: StreamLog, *, ticket_digest: str | None = None, key_digest: bytes | None = None) -> Owner:
    """Create a stream."""
    stream_id = f"str_{secrets.token_urlsafe(18)}"
    record = StreamRecord(stream_id, "alice", "r-1", INTERRUPTION, CANCELLATION, ticket_digest, key_digest)
    owner = Owner(log, record)
    await log.create(record, owner.on_end)
    return owner


def event(number: int) -> StreamEvent:
    return StreamEvent(number, f"data: piece {number} é\n\n".encode())


async def read(log: StreamLog, stream_id: str, after: int = 0) -> list[StreamEvent]:
    """Follow a stream to its end."""
    async with asyncio.timeout(DEADLINE_S), log.follow(stream_id, after) as batches:
        return [event async for batch in batches for event in batch]


async def take(batches: AsyncIterator[Sequence[StreamEvent]], count: int) -> list[StreamEvent]:
    """Take at least so many events, and no batch more."""
    events: list[StreamEvent] = []
    async with asyncio.timeout(DEADLINE_S):
        while len(events) < count:
            events.extend(await anext(batches))
    return events


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another process, or the end of a time, brings about."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - neither a socket nor a frozen server has an event
            await asyncio.sleep(0.005)


def redis_settings(url: str, timeout_s: float = 5.0) -> RedisSettings:
    return RedisSettings(url=SecretStr(url), timeout_s=timeout_s)


@asynccontextmanager
async def open_redis_log(
    url: str, *, streams: StreamSettings | None = None, timeout_s: float = 5.0
) -> AsyncIterator[RedisStreamLog]:
    """Open a log as one process of a fleet does."""
    settings = redis_settings(url, timeout_s)
    async with AsyncExitStack() as stack:
        redis: Redis = await stack.enter_async_context(open_redis(settings))
        log = RedisStreamLog(
            redis=redis,
            redis_settings=settings,
            settings=streams or StreamSettings(),
            metrics=Metrics(CollectorRegistry()),
        )
        yield await stack.enter_async_context(log.opened())


class DurableRedis:
    """A server that writes each command to disk before it answers, so that it can be killed and started again."""

    def __init__(self, folder: Path, binary: str) -> None:
        self._folder = folder
        self._binary = binary
        self._process: Popen[bytes] | None = None
        self.url = f"unix://{folder}/redis.sock"

    def start(self) -> None:
        options = [
            "--port",
            "0",
            "--unixsocket",
            f"{self._folder}/redis.sock",
            "--save",
            "",
            "--dir",
            str(self._folder),
        ]
        durable = ["--appendonly", "yes", "--appendfsync", "always"]
        self._process = Popen([self._binary, *options, *durable], stdout=DEVNULL, stderr=DEVNULL, stdin=DEVNULL)
        assert eventually(self._answers, DEADLINE_S)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def lose_all(self) -> None:
        """Delete what it would find at its next start."""
        for file in self._folder.rglob("*.aof*"):
            file.unlink()

    def _answers(self) -> bool:
        with closing(BlockingRedis.from_url(self.url, socket_timeout=1)) as redis:
            try:
                return bool(redis.ping())
            except RedisError:
                return False


@contextmanager
def durable_redis() -> Iterator[DurableRedis]:
    binary = shutil.which("redis-server") or shutil.which("valkey-server") or server_binary()
    assert binary is not None
    with TemporaryDirectory(prefix="redis-") as folder:
        server = DurableRedis(Path(folder), str(binary))
        server.start()
        try:
            yield server
        finally:
            server.kill()
