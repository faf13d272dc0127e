"""Looks up names that callers chose, where nobody else's look-ups wait behind them."""

import asyncio
import socket
import threading
from contextlib import suppress
from typing import Any

AT_ONCE = 64
"""Look-ups of one process; a slow one goes on after whoever asked has given up."""

Found = list[tuple[Any, ...]]
"""What ``socket.getaddrinfo`` returns."""


class Lookups:
    """Looks names up in threads of its own.

    The loop's executor would do, but for two things: providers' names would wait behind those of slow receivers, and so
    would the end of the process, which ends these with it.
    """

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(AT_ONCE)

    async def find(self, host: str, port: int, family: socket.AddressFamily) -> Found:
        """Return what ``socket.getaddrinfo`` does, and raise what it does, ``UnicodeError`` too."""
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        found: asyncio.Future[Found] = loop.create_future()

        def settle(result: Found | Exception) -> None:
            self._free.release()
            if found.done():
                return
            if isinstance(result, Exception):
                found.set_exception(result)
            else:
                found.set_result(result)

        def look() -> None:
            result: Found | Exception
            try:
                result = list(socket.getaddrinfo(host, port, family, socket.SOCK_STREAM))
            except Exception as error:  # noqa: BLE001 - the edge of the thread: whoever waits raises it
                result = error
            with suppress(RuntimeError):  # the loop is closed, and nobody waits
                loop.call_soon_threadsafe(settle, result)

        threading.Thread(target=look, name="webhook look-up", daemon=True).start()
        return await found
