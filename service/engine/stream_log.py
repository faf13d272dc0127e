"""Where the events of resumable streams are kept, so that any process can go on telling them: the port."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from service.domain.stream import StreamEvent, StreamRecord


class StreamLog(Protocol):
    """Numbered events, each written once by the process that owns the stream, read by any.

    A log ends once: with its owner's last event, or with one that somebody else put there, since the caller ended the
    stream or the owner is gone. Nothing comes behind that, whatever the owner still writes. A terminal event that is
    not the owner's has the number ``FOREIGN_END``, greater than any that a client may have been told.
    """

    async def create(self, record: StreamRecord, on_end: Callable[[bytes], object]) -> None:
        """Begin a log that this process owns; raise ``StoreUnavailable``.

        ``on_end`` is called, once, with the frame of the terminal event when somebody else ended the log, within 250 ms
        of that: the owner must stop generating then. Its client is told that frame under ``FOREIGN_END`` too.
        """
        ...

    def append(self, stream_id: str, events: Sequence[StreamEvent]) -> None:
        """Write the owner's next events, in order. Does not wait: they are kept in the background, in order.

        While the store is away they wait here, within bounds; a log whose bounds are passed ends with its
        ``interruption``, and its owner goes on for the client it has. After the last event, or when somebody else ended
        the log, or where the store lost it, this process owns it no more: further events are dropped.
        """
        ...

    async def find(self, stream_id: str) -> StreamRecord | None:
        """Return what is known of a stream, or None if nothing is (any more). Raise ``StoreUnavailable``."""
        ...

    def follow(self, stream_id: str, after: int) -> AbstractAsyncContextManager[AsyncIterator[Sequence[StreamEvent]]]:
        """Read the events whose number is greater than ``after``, those to come too, up to the last one.

        The iterator ends without an event where the log has ended and no number in it is greater than ``after``. A wait
        for the next events can be cancelled, and loses none. Entering raises ``StreamNotFound`` where events after
        ``after`` are not kept any more, ``StoreUnavailable`` where the store does not answer. The iterator raises
        ``StreamNotFound`` where what comes next was forgotten meanwhile, ``StoreUnavailable`` where the store stays
        away for long: a gap is never passed over.
        """
        ...

    async def end(self, stream_id: str, frame: bytes) -> bool:
        """End somebody's log with this terminal event; False if it had ended already. Raise ``StoreUnavailable``."""
        ...

    async def room(self, stream_id: str) -> None:
        """Wait until its owner may append more: for a store that works, and not for one that is away."""
        ...

    async def unfollowed_s(self, stream_id: str) -> float:
        """Return for how many seconds nobody has followed it: 0 while somebody does, infinity if nobody ever did.

        May be some seconds too small. Raise ``StoreUnavailable``.
        """
        ...

    async def flush(self) -> None:
        """Wait until everything appended is kept; raise ``StoreUnavailable`` where that takes longer than 2 s."""
        ...
