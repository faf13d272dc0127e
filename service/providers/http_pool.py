"""Connections that wait for their next request, and those whose answer comes in though nobody waits for it."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from service.providers.dial import Origin
from service.providers.http1 import Connection

KEEPALIVE_S = 75.0
"""How long an idle connection is kept; the vendors' front ends close theirs after 60 s and more."""
LINGER_S = 1.0
"""How long the end of the body may take after the end marker, so that the connection goes back to the pool."""


class HttpPool:
    """Each connection is in the hands of one call, idle here, or lingering here; what is none of these is closed.

    There is no most: how many calls may run is decided elsewhere.
    """

    def __init__(self, *, dial: Callable[[Origin, float], Awaitable[Connection]], keep_alive: bool = True) -> None:
        self._dial = dial
        self._keep_alive = keep_alive
        self._idle: dict[Origin, deque[Connection]] = {}
        self._lingering: dict[Connection, asyncio.TimerHandle] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False

    def take(self, origin: Origin) -> Connection | None:
        """Return the connection that has been idle longest and is still open, if there is one.

        Between this and the write nothing else runs, so that what is known to be closed is never written to.
        """
        idle = self._idle.get(origin)
        if not idle:
            return None
        oldest = asyncio.get_running_loop().time() - KEEPALIVE_S
        while idle:
            connection = idle.popleft()
            if connection.reusable and connection.idle_since > oldest:
                return connection
            connection.close()
        return None

    async def dial(self, origin: Origin, until: float) -> Connection:
        """Make a connection. Raises what the dialer does."""
        return await self._dial(origin, until)

    def give(self, origin: Origin, connection: Connection) -> None:
        """Take a connection back, or close it if nothing can come over it."""
        if not (connection.reusable and self._keep_alive) or self._closed:
            connection.close()
            return
        connection.drop_unread()
        loop = asyncio.get_running_loop()
        connection.idle_since = loop.time()
        self._idle.setdefault(origin, deque()).append(connection)
        if self._sweep is None:
            self._sweep = loop.call_later(KEEPALIVE_S, self._close_old)

    def linger(self, origin: Origin, connection: Connection) -> None:
        """Let the end of a body come in the next moments. It is not waited for: the caller has all it wants."""
        if not self._keep_alive or self._closed or not connection.is_open:
            connection.close()
            return

        def ended(connection: Connection) -> None:
            self._lingering.pop(connection).cancel()
            self.give(origin, connection)

        timer = asyncio.get_running_loop().call_later(LINGER_S, self._give_up, connection)
        self._lingering[connection] = timer
        connection.end_without(ended)

    def close(self) -> None:
        """Close what is idle or lingers; what is in use is closed when it comes back."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for timer in self._lingering.values():
            timer.cancel()
        for connection in (*self._lingering, *[one for idle in self._idle.values() for one in idle]):
            connection.close()
        self._lingering.clear()
        self._idle.clear()

    def _give_up(self, connection: Connection) -> None:
        del self._lingering[connection]
        connection.close()

    def _close_old(self) -> None:
        loop = asyncio.get_running_loop()
        oldest = loop.time() - KEEPALIVE_S
        for origin, idle in tuple(self._idle.items()):
            while idle and not (idle[0].reusable and idle[0].idle_since > oldest):
                idle.popleft().close()
            if not idle:
                del self._idle[origin]
        first = min((idle[0].idle_since for idle in self._idle.values()), default=None)
        self._sweep = None if first is None else loop.call_at(first + KEEPALIVE_S, self._close_old)
