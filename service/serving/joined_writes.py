"""One write for what an answer has at once: its head and its body, or its last chunk and its end."""

import asyncio
from contextlib import suppress
from typing import Any

JOINED_BYTES = 65_536
"""What is held back at most: more is written at once, so that the transport can say that it is full."""


class JoinedWrites:
    """A transport that writes once per turn of the loop; all else is the transport's own.

    uvloop asks the kernel at each write (0.23), and the client is woken each time. Nothing is held back longer than
    what is ready to run now takes.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: list[bytes] = []
        self._held_bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Write in this turn of the loop."""
        if not self._held:
            self._loop.call_soon(self.flush)
        self._held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes > JOINED_BYTES:
            self.flush()

    def writelines(self, lines: list[bytes]) -> None:
        """Write in this turn of the loop."""
        self.write(b"".join(lines))

    def close(self) -> None:
        """Write what is held back, and close."""
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        """Close at once, whatever is not written."""
        self._held, self._held_bytes = [], 0
        self._transport.abort()

    def get_write_buffer_size(self) -> int:
        """Return the bytes that the kernel has not taken."""
        return self._held_bytes + self._transport.get_write_buffer_size()

    def flush(self) -> None:
        """Write what is held back."""
        held, self._held, self._held_bytes = self._held, [], 0
        if held:
            with suppress(RuntimeError):  # uvloop's, once the connection is lost: in this very turn
                self._transport.write(held[0] if len(held) == 1 else b"".join(held))
