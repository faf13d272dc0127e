"""How resumable streams lie in Redis: the keys, what an entry says, and how a stream is ended from outside.

A stream is a hash (what is known of it) and a Redis Stream of its events. An ordinary event ``n`` is the entry ``0-n``,
the terminal one ``1-0``. Redis takes no entry below the newest, so whoever writes ``1-0`` first ends the stream, and
nothing comes behind it. What the owner writes, the terminal entry included, carries its number; a foreign end does not.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import ResponseError

from service.domain.stream import FOREIGN_END, StreamEvent

END_ID = b"1-0"
GROUP = b"llm-api"
"""A consumer group that nobody reads with: to create one is how an empty Redis Stream comes into being."""
ENDED_KEPT_S = 600
"""Seconds for which word waits for an owner. A live one takes it within a fraction of one; a dead one never will."""
EVENT_BYTES = 144
"""What an event weighs in our memory beside its frame; measured on CPython 3.11."""
_FRAME = b"e"
_NUMBER = b"n"


class StreamKeys(NamedTuple):
    """The keys of one stream. The braces keep them together in a store that is sharded by key."""

    meta: bytes
    events: bytes
    followed: bytes
    """Exists while some process follows the stream."""


class StreamEnd(NamedTuple):
    """What is needed to end a stream that may be another process's."""

    stream_id: str
    owner: str
    frame: bytes


def stream_keys(stream_id: str) -> StreamKeys:
    """Name the keys of a stream."""
    # A caller may ask for anything, so for text that is no UTF-8 too.
    prefix = f"llm-api:stream:{{{stream_id}}}".encode("utf-8", "surrogatepass")
    return StreamKeys(prefix, prefix + b":events", prefix + b":followed")


def lease_key(owner: str) -> str:
    """Name the key that exists as long as a process that owns streams lives."""
    return f"llm-api:stream-owner:{owner}"


def ended_key(owner: str) -> str:
    """Name the hash in which an owner finds which of its streams others ended, and with which event."""
    return f"llm-api:stream-owner:{owner}:ended"


def put_event(pipeline: Pipeline, keys: StreamKeys, event: StreamEvent, *, events_max: int, kept_ms: int) -> None:
    """Write an event of the owner's: one command, or three for the terminal one.

    A stream that the store has forgotten is not begun again; the answer is then None.
    """
    if not event.last:
        entry_id = b"0-%d" % event.number
        pipeline.execute_command(
            b"XADD", keys.events, b"NOMKSTREAM", b"MAXLEN", b"~", events_max, entry_id, _FRAME, event.frame
        )
        return
    number = () if event.number == FOREIGN_END else (_NUMBER, event.number)
    pipeline.execute_command(b"XADD", keys.events, b"NOMKSTREAM", END_ID, _FRAME, event.frame, *number)
    put_expiry(pipeline, keys, kept_ms)


def put_expiry(pipeline: Pipeline, keys: StreamKeys, kept_ms: int) -> None:
    """Bound how long a stream is kept from now on: two commands."""
    pipeline.pexpire(keys.meta, kept_ms)
    pipeline.pexpire(keys.events, kept_ms)


def read_entries(entries: Iterable[tuple[bytes, dict[bytes, bytes]]]) -> list[StreamEvent]:
    """Read what the store gave for a range of entries."""
    return [
        StreamEvent(int(fields.get(_NUMBER, FOREIGN_END)), fields[_FRAME], last=True)
        if entry_id == END_ID
        else StreamEvent(int(entry_id[2:]), fields[_FRAME])
        for entry_id, fields in entries
    ]


def weight_of(events: Sequence[StreamEvent]) -> int:
    """Say how many bytes of our memory events take."""
    return sum(len(event.frame) for event in events) + EVENT_BYTES * len(events)


def is_behind_newest(reply: object) -> bool:
    """Whether an entry was refused since there is one with its number or a greater one."""
    # Redis has no code of its own for this.
    return isinstance(reply, ResponseError) and "equal or smaller" in str(reply)


async def write_ends(redis: Redis, ends: Sequence[StreamEnd], *, kept_ms: int) -> list[bool]:
    """End streams, and leave word for their owners; return which were not over yet. Two round trips.

    Raises what the library raises.
    """
    pipeline = redis.pipeline(transaction=False)
    for end in ends:
        keys = stream_keys(end.stream_id)
        pipeline.execute_command(b"XADD", keys.events, b"NOMKSTREAM", END_ID, _FRAME, end.frame)
    replies: list[Any] = await pipeline.execute(raise_on_error=False)
    pipeline = redis.pipeline(transaction=False)
    for end, reply in zip(ends, replies, strict=True):
        # Word is left for one that had ended too: whoever ended it may have got no further than that.
        if isinstance(reply, bytes) or is_behind_newest(reply):
            put_expiry(pipeline, stream_keys(end.stream_id), kept_ms)
            pipeline.hset(ended_key(end.owner), end.stream_id, end.frame)
            pipeline.expire(ended_key(end.owner), ENDED_KEPT_S)
        elif isinstance(reply, ResponseError):
            raise reply
    await pipeline.execute(raise_on_error=False)
    return [isinstance(reply, bytes) for reply in replies]
