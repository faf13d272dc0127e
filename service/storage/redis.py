"""The connection to the shared store, and its failures in our words."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from typing_extensions import override

from service.config import RedisSettings
from service.errors import StoreUnavailable

MAX_CONNECTIONS = 64
"""For each process; commands are short, so a few serve thousands of requests a second."""
CONNECT_FACTOR = 5
"""A new connection may take so many times ``redis.timeout_s``: TCP, TLS and a greeting are several round trips."""


@asynccontextmanager
async def open_redis(settings: RedisSettings) -> AsyncIterator[Redis]:
    """Open a pool of connections to ``redis.url``, which must be set; it connects with the first command.

    Does not wait for the store: its outage must not keep us from starting. Nothing is retried, so that a command ends
    after ``timeout_s``, or after six times that when it needs a new connection.
    """
    if settings.url is None:
        raise ValueError("redis.url is not set")
    pool = _Pool.from_url(
        settings.url.get_secret_value(),
        connect_timeout_s=settings.timeout_s * CONNECT_FACTOR,
        max_connections=MAX_CONNECTIONS,
        timeout=settings.timeout_s,
        # The library's own timeouts are off, see _Client.
        socket_timeout=None,
        socket_connect_timeout=None,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
    )
    client = _Client(settings.timeout_s, pool)
    try:
        yield client
    finally:
        await client.aclose()
        await pool.aclose()


@contextmanager
def redis_errors() -> Iterator[None]:
    """Turn every failure of the store into ``StoreUnavailable``; its message names no address."""
    try:
        yield
    except (RedisError, OSError, TimeoutError) as error:
        raise StoreUnavailable(f"the shared store did not answer ({type(error).__name__})") from error


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

    def __init__(self, timeout_s: float, pool: BlockingConnectionPool) -> None:
        super().__init__(connection_pool=pool)
        self._timeout_s = timeout_s

    @override
    async def _send_command_parse_response(
        self, conn: AbstractConnection, command_name: str, *args: Any, **options: Any
    ) -> Any:
        async with asyncio.timeout(self._timeout_s):
            return await super()._send_command_parse_response(conn, command_name, *args, **options)  # type: ignore[no-untyped-call]
