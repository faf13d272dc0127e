"""Noticing that the client has left, while we wait for something else."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from typing import Literal, Protocol, TypeVar

from fastapi import Request
from starlette.types import Receive, Scope

from service.engine.drain import Drain, Stage

T = TypeVar("T")

SLOW_CLIENT = "llm_api.slow_client"
"""What our server sets in the scope when it ends a connection whose client does not read (``service.serving``)."""

CONNECTION = "llm_api.connection"
"""Where our server puts the request's :class:`Connection` in the scope; other servers do not."""


class Connection(Protocol):
    """What our server knows of the connection that a request came on (``service.serving``)."""

    @property
    def has_body(self) -> bool:
        """Whether all of the body has come."""
        ...

    def on_departure(self, listener: Callable[[], object]) -> Callable[[], object]:
        """Call ``listener`` when the client leaves; give what ends that."""
        ...


class ClientDisconnected(Exception):  # noqa: N818 - not an error of ours, nor one that anybody is told
    """The client hung up: what was being done for it was cancelled."""


def departure(scope: Scope) -> Literal["client_disconnect", "slow_client"]:
    """Say how the client was lost, as ``stream_ends`` counts it."""
    return "slow_client" if scope.get(SLOW_CLIENT) else "client_disconnect"


@asynccontextmanager
async def cancelled_on_disconnect(
    scope: Scope, receive: Receive, drain: Drain | None
) -> AsyncIterator[Callable[[], object]]:
    """Cancel the block as soon as the client leaves, and raise ``ClientDisconnected`` then.

    Given a drain, raises ``Draining`` instead where it has no more time for this. The request's body must have been
    read: whatever comes after it is the disconnect. Nothing else tells us while the provider is silent, and every token
    that it goes on to write is paid for. Calling what is given ends the listening.
    """
    loop = asyncio.get_running_loop()
    left = cut = False

    def cut_short() -> None:
        nonlocal cut
        if not left:  # what is being left has no more time anyway
            cut = True
            guard.reschedule(loop.time())

    def leave() -> None:
        nonlocal left
        if not cut:
            left = True
            guard.reschedule(loop.time())

    try:
        async with asyncio.timeout(None) as guard:
            stop_listening = _on_departure(scope, receive, leave)
            try:
                with nullcontext() if drain is None else drain.told(Stage.CUTTING, cut_short):
                    yield stop_listening
            finally:
                stop_listening()
    except TimeoutError:
        if left:
            raise ClientDisconnected from None
        if cut and drain is not None:
            raise drain.error() from None
        raise


def _on_departure(scope: Scope, receive: Receive, leave: Callable[[], object]) -> Callable[[], object]:
    """Call ``leave`` when the client has left; return what ends that.

    A task that waits for the server's word costs a plain request about a twentieth of its time: our own server is asked
    to call instead.
    """
    connection: Connection | None = scope.get(CONNECTION)
    if connection is not None:
        return connection.on_departure(leave)

    async def wait_for_disconnect() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        leave()

    return asyncio.get_running_loop().create_task(wait_for_disconnect()).cancel


async def until_disconnect(request: Request, work: Awaitable[T]) -> T:
    """Return what ``work`` gives; cancel it and raise ``ClientDisconnected`` if the client leaves first."""
    async with cancelled_on_disconnect(request.scope, request.receive, request.state.resources.drain):
        return await work
    raise AssertionError("the block above returns or raises")
