"""What is written at once goes out at once, in order, and none of it is lost."""

import asyncio
from typing import Any, cast

from typing_extensions import override

from service.serving.joined_writes import JOINED_BYTES, JoinedWrites


class Transport:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[bytes | str] = []

    def write(self, data: bytes) -> None:
        self.told.append(data)

    def close(self) -> None:
        self.told.append("close")

    def abort(self) -> None:
        self.told.append("abort")

    def get_write_buffer_size(self) -> int:
        return 7

    def get_extra_info(self, name: str) -> str:
        return name


def joined(transport: Transport) -> Any:
    return JoinedWrites(cast("asyncio.Transport", transport), asyncio.get_running_loop())


async def test_one_turn_is_one_write() -> None:
    transport = Transport()
    writes = joined(transport)
    writes.write(b"head ")
    writes.writelines([b"bo", b"dy"])
    assert transport.told == []
    assert writes.get_write_buffer_size() == 9 + 7
    await asyncio.sleep(0)
    assert transport.told == [b"head body"]
    writes.write(b"more")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert transport.told == [b"head body", b"more"]
    assert writes.get_write_buffer_size() == 7


async def test_much_goes_out_at_once() -> None:
    transport = Transport()
    writes = joined(transport)
    writes.write(b"x")
    writes.write(b"y" * JOINED_BYTES)
    assert transport.told == [b"x" + b"y" * JOINED_BYTES]
    writes.write(b"z")
    await asyncio.sleep(0)
    assert transport.told[1:] == [b"z"]


async def test_closing_writes_what_is_held_and_aborting_does_not() -> None:
    closed, aborted = Transport(), Transport()
    for transport, end in ((closed, "close"), (aborted, "abort")):
        writes = joined(transport)
        writes.write(b"last")
        getattr(writes, end)()
        await asyncio.sleep(0)
    assert closed.told == [b"last", "close"]
    assert aborted.told == ["abort"]


async def test_all_else_is_the_transports_own() -> None:
    assert joined(Transport()).get_extra_info("socket") == "socket"


async def test_a_connection_that_is_lost_meanwhile_is_no_error() -> None:
    class Lost(Transport):
        @override
        def write(self, data: bytes) -> None:
            raise RuntimeError(data)  # uvloop's, once the handle is closed

    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    joined(Lost()).write(b"last")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert told == []
