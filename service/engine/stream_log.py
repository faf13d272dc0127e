"""Where the events of resumable streams are kept, so that any process can go on telling them: the port."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from service.domain.stream import StreamEvent, StreamRecord


class StreamLog(Protocol):
    """Numbered events, each written once by the process that owns the stream, read by any.

    A log ends once: with its owner's last event, or with one that somebody else put there, since the caller ended the
    stream or the owner is gone. Nothing comes behind that, whatever the owner still writes.
    """

    async def create(self, record: StreamRecord, on_end: Callable[[bytes], object]) -> None:
        """Begin a log that this process owns; raise ``StoreUnavailable``.

        ``on_end`` is called, once, with the frame of the terminal event when somebody else ended the log, within 250 ms
        of that: the owner must stop generating then.
        """
        ...

    def append(self, stream_id: str, events: Sequence[StreamEvent]) -> None:
        """Write the owner's next events, in order. Does not wait: they are kept in the background, in order.

        While the store is away they wait here, within bounds; a log whose bounds are passed ends with its
        ``interruption``, and its owner goes on for the client it has. After the last event the owner owns it no more.
        """
        ...

    async def find(self, stream_id: str) -> StreamRecord | None:
        """Return what is known of a stream, or None if nothing is (any more). Raise ``StoreUnavailable``."""
        ...

    def follow(self, stream_id: str, after: int) -> AbstractAsyncContextManager[AsyncIterator[Sequence[StreamEvent]]]:
        """Read the events whose number is greater than ``after``, those to come too, up to the last one.

        Entering raises ``StreamNotFound`` where events after ``after`` are not kept any more, ``StoreUnavailable``
        where the store does not answer; the iterator raises ``StoreUnavailable`` where it stays away for long. The
        iterator ends without an event where ``after`` is that of the last one or greater and the log has ended, but for
        a log that its owner did not end: there the terminal event comes whatever ``after`` is, with a number greater
        than it, unless ``after`` is that very number.
        """
        ...

    async def end(self, stream_id: str, frame: bytes) -> bool:
        """End somebody's log with this terminal event; False if it had ended already. Raise ``StoreUnavailable``."""
        ...

    async def is_followed(self, stream_id: str) -> bool:
        """Whether any process follows it now. Raise ``StoreUnavailable``."""
        ...

    async def flush(self) -> None:
        """Wait until everything appended is kept; raise ``StoreUnavailable`` where that takes longer than 2 s."""
        ...
