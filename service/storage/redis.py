"""The connection to the shared store, and its failures in our words."""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NoReturn

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.connection import AbstractConnection, Connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ReadOnlyError, RedisError, ResponseError
from typing_extensions import override

from service.config import RedisSettings
from service.errors import StoreUnavailable
from service.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 64
"""For each process; commands are short, so a few serve thousands of requests a second."""
FIRST_BACKOFF_S = 0.05
MAX_BACKOFF_S = 1.0
"""Seconds between two steps in the background while the store is away: they double from the one to the other."""
_PASSING = re.compile(
    r"\b(READONLY|LOADING|OOM|NOAUTH|NOPERM|CLUSTERDOWN|BUSY|MISCONF|MASTERDOWN|NOREPLICAS|TRYAGAIN|MOVED|ASK|UNKILLABLE)\b"
)
"""What a server says that refuses for a time, or by its configuration."""
_FAMILIES = {
    **dict.fromkeys(("EVAL", "EVALSHA", "EVALSHA_RO", "FCALL", "SCRIPT LOAD"), "script"),
    **dict.fromkeys(
        (
            "EXISTS",
            "GET",
            "GETRANGE",
            "HGET",
            "HGETALL",
            "HLEN",
            "HMGET",
            "MGET",
            "PTTL",
            "STRLEN",
            "TTL",
            "ZCARD",
            "ZCOUNT",
            "ZRANGE",
            "ZSCORE",
        ),
        "read",
    ),
    **dict.fromkeys(
        (
            "DEL",
            "EXPIRE",
            "GETDEL",
            "HDEL",
            "HSET",
            "INCR",
            "PEXPIRE",
            "PERSIST",
            "PUBLISH",
            "SADD",
            "SET",
            "SETEX",
            "SREM",
            "UNLINK",
            "ZADD",
            "ZREM",
        ),
        "write",
    ),
    **dict.fromkeys(("XADD", "XDEL", "XINFO STREAM", "XLEN", "XRANGE", "XREAD", "XREVRANGE", "XTRIM"), "stream"),
}
"""Of the commands that are in use: ``service.telemetry.metrics.REDIS_COMMANDS``."""
CONNECT_FACTOR = 5
"""A new connection may take so many times ``redis.timeout_s``: TCP, TLS and a greeting are several round trips."""


@asynccontextmanager
async def open_redis(
    settings: RedisSettings,
    *,
    metrics: Metrics | None = None,
    patience_s: float = 0.0,
    max_connections: int = MAX_CONNECTIONS,
) -> AsyncIterator[Redis]:
    """Open a pool of connections to ``redis.url``, which must be set; it connects with the first command.

    Does not wait for the store: its outage must not keep us from starting. Nothing is retried, so that a command, or a
    pipeline as a whole, ends after ``timeout_s``, or after six times that when it needs a new connection. What works in
    the background, with nobody waiting for it, gives each command ``patience_s`` more, and as much for its connection.
    """
    client = redis_client(settings, metrics=metrics, patience_s=patience_s, max_connections=max_connections)
    try:
        yield client
    finally:
        await close_redis(client)


def redis_client(
    settings: RedisSettings,
    *,
    metrics: Metrics | None = None,
    patience_s: float = 0.0,
    max_connections: int = MAX_CONNECTIONS,
) -> Redis:
    """Make what ``open_redis`` opens, to be closed by ``close_redis``; ``metrics`` tell how long commands take."""
    if settings.url is None:
        raise ValueError("redis.url is not set")
    pool = _Pool.from_url(
        settings.url.get_secret_value(),
        connect_timeout_s=settings.timeout_s * CONNECT_FACTOR + patience_s,
        max_connections=max_connections,
        timeout=settings.timeout_s + patience_s,
        # The library's own timeouts are off, see _Client.
        socket_timeout=None,
        socket_connect_timeout=None,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
    )
    return _Client(settings.timeout_s + patience_s, pool, metrics)


async def close_redis(client: Redis) -> None:
    """Close a client and its connections."""
    await client.aclose()
    await client.connection_pool.aclose()


@contextmanager
def redis_errors() -> Iterator[None]:
    """Turn every failure of the store into ``StoreUnavailable``; its message names no address."""
    try:
        yield
    except (RedisError, OSError, TimeoutError) as error:
        raise StoreUnavailable(f"the shared store did not answer ({type(error).__name__})") from error


class ScriptDefect(Exception):  # noqa: N818 - no outage, and nothing that a caller is told
    """A script of ours failed by itself: it has a fault, or somebody changed what it works on."""


@contextmanager
def script_errors() -> Iterator[None]:
    """As ``redis_errors``; but what the store is not the cause of is a ``ScriptDefect``."""
    try:
        with redis_errors():
            yield
    except StoreUnavailable as error:
        cause = error.__cause__
        # The library has a class for most of what a server refuses for a time; the others say it in their first word,
        # which older servers put behind the place in the script.
        if type(cause) is ResponseError and not _PASSING.search(str(cause)):
            raise ScriptDefect(str(cause)) from cause
        raise


class StoreOutage:
    """Tells the log once that the store is away, and once that it is back, however often it is tried in between."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._since: float | None = None

    def lasts(self, error: StoreUnavailable) -> float:
        """Note a failure; return for how many seconds there have been nothing but failures."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
            logger.warning("%s: waiting for the shared store", self._what, extra={"error": str(error)})
        return now - self._since

    def over(self) -> None:
        """Note a success."""
        if self._since is not None:
            logger.info("%s: the shared store is back", self._what, extra={"away_s": time.monotonic() - self._since})
            self._since = None


async def repeat_with_store(
    step: Callable[[], Awaitable[float]],
    what: str,
    *,
    on_defect: Callable[[Exception], object],
    on_away: Callable[[StoreUnavailable, float], object] | None = None,
) -> NoReturn:
    """Repeat, until cancelled, what works with the store in the background; a step returns its pause, in seconds.

    While the store is away the pauses grow, ``on_away`` is called with each failure and for how many seconds there have
    been nothing else, and the log is told once of the beginning and once of the end. A defect is logged, told to
    ``on_defect``, and does not stop the steps that come.
    """
    outage = StoreOutage(what)
    backoff_s = FIRST_BACKOFF_S
    while True:
        try:
            with redis_errors():
                pause_s = await step()
        except StoreUnavailable as error:
            away_s = outage.lasts(error)
            if on_away is not None:
                on_away(error, away_s)
            pause_s, backoff_s = backoff_s, min(2 * backoff_s, MAX_BACKOFF_S)
        except Exception as defect:  # the outer edge of a task: one defect must not stop all that comes
            logger.exception("%s: defect", what)
            on_defect(defect)
            pause_s = MAX_BACKOFF_S
        else:
            outage.over()
            backoff_s = FIRST_BACKOFF_S
        await asyncio.sleep(pause_s)


class _Pool(BlockingConnectionPool):
    """Bounds the time for which a command waits for a connection, greeting included."""

    def __init__(self, *, connect_timeout_s: float, **options: Any) -> None:
        super().__init__(**options)
        self._connect_timeout_s = connect_timeout_s

    @override
    async def get_connection(self, command_name: str | None = None, *keys: Any, **options: Any) -> AbstractConnection:
        async with asyncio.timeout(self._connect_timeout_s):
            connection: AbstractConnection = await super().get_connection()  # type: ignore[no-untyped-call]
            return connection


class _Client(Redis):
    """Bounds the time of each command, once it has a connection; a connection whose command was given up is closed.

    The library's own ``socket_timeout`` sends each command through ``asyncio.wait_for``, which on Python 3.11 loses the
    cancellation of a call whose sending has just succeeded (python/cpython#86296). Measured: of 200 cancelled calls, 67
    went on as if nothing had been asked; bounded from outside, none.
    """

    def __init__(self, timeout_s: float, pool: BlockingConnectionPool, metrics: Metrics | None) -> None:
        super().__init__(connection_pool=pool)
        self._timeout_s = timeout_s
        self._metrics = metrics

    @override
    async def _send_command_parse_response(
        self, conn: AbstractConnection, command_name: str, *args: Any, **options: Any
    ) -> Any:
        with _timed(self._metrics, _family_of(command_name, args)):
            async with asyncio.timeout(self._timeout_s), _left_if_read_only(conn):
                return await super()._send_command_parse_response(conn, command_name, *args, **options)  # type: ignore[no-untyped-call]

    @override
    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        return _Pipeline(
            self._timeout_s, self._metrics, self.connection_pool, self.response_callbacks, transaction, shard_hint
        )


class _Pipeline(Pipeline):
    """Bounds the time of all its commands together: the library sends them without asking the client."""

    def __init__(self, timeout_s: float, metrics: Metrics | None, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._timeout_s = timeout_s
        self._metrics = metrics

    @override
    async def _execute_pipeline(self, connection: Connection, *arguments: Any) -> Any:
        with _timed(self._metrics, "pipeline"):
            async with asyncio.timeout(self._timeout_s), _left_if_read_only(connection) as look:
                return look(await super()._execute_pipeline(connection, *arguments))

    @override
    async def _execute_transaction(self, connection: Connection, *arguments: Any) -> Any:
        with _timed(self._metrics, "pipeline"):
            async with asyncio.timeout(self._timeout_s), _left_if_read_only(connection) as look:
                return look(await super()._execute_transaction(connection, *arguments))


@contextmanager
def _timed(metrics: Metrics | None, family: str | None) -> Iterator[None]:
    """Measure what is asked within the block, however it ends; without a family nothing."""
    if metrics is None or family is None:
        yield
        return
    began = time.monotonic()
    try:
        yield
    finally:
        metrics.redis_commands.labels(family).observe(time.monotonic() - began)


def _family_of(command: str, arguments: tuple[Any, ...]) -> str | None:
    """Return under which of ``REDIS_COMMANDS`` a command is told of; None for one that waits by intention."""
    family = _FAMILIES.get(command.upper(), "other")
    return None if family == "stream" and b"BLOCK" in arguments else family


@asynccontextmanager
async def _left_if_read_only(connection: AbstractConnection) -> AsyncIterator[Callable[[Any], Any]]:
    """Close a connection to what has become a replica: the address may lead to the new primary already.

    Gives a function that looks for such an answer among those of a pipeline, and returns them.
    """
    replies: list[object] = []

    def look(answers: Any) -> Any:
        replies.extend(answers)
        return answers

    try:
        yield look
    except ResponseError as error:
        replies.append(error)
        raise
    finally:
        if any(map(_is_read_only, replies)):
            await connection.disconnect(nowait=True)


def _is_read_only(reply: object) -> bool:
    # Inside a script, servers before Redis 7 say it as an error of the script.
    return isinstance(reply, ReadOnlyError) or (isinstance(reply, ResponseError) and "-READONLY" in str(reply))
