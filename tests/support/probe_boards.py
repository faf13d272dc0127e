"""Boards of what is known of providers, as processes of a fleet open them."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from service.domain.clock import Clock
from service.engine.probe_board import ProbeBoard
from service.storage.probe_board import RedisProbeBoard
from tests.support.stream_logs import redis_settings

OpenBoard = Callable[[], ProbeBoard]


@asynccontextmanager
async def open_redis_boards(
    url: str, clock: Clock, count: int, timeout_s: float = 5.0
) -> AsyncIterator[list[RedisProbeBoard]]:
    """Open a board for each of so many processes."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(RedisProbeBoard(redis_settings(url, timeout_s), clock).opened())
            for _ in range(count)
        ]
