"""Noticing that the client has left, while we wait for something else."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from typing import Literal, TypeVar

from fastapi import Request
from starlette.types import Receive, Scope

from service.engine.drain import Drain, Stage

T = TypeVar("T")

SLOW_CLIENT = "llm_api.slow_client"
"""What our server sets in the scope when it ends a connection whose client does not read (``service.serving``)."""


class ClientDisconnected(Exception):  # noqa: N818 - not an error of ours, nor one that anybody is told
    """The client hung up: what was being done for it was cancelled."""


def departure(scope: Scope) -> Literal["client_disconnect", "slow_client"]:
    """Say how the client was lost, as ``stream_ends`` counts it."""
    return "slow_client" if scope.get(SLOW_CLIENT) else "client_disconnect"


@asynccontextmanager
async def cancelled_on_disconnect(receive: Receive, drain: Drain | None) -> AsyncIterator[Callable[[], object]]:
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

    async def wait_for_disconnect() -> None:
        nonlocal left
        while (await receive())["type"] != "http.disconnect":
            pass
        if not cut:
            left = True
            guard.reschedule(loop.time())

    try:
        async with asyncio.timeout(None) as guard:
            listener = loop.create_task(wait_for_disconnect())
            try:
                with nullcontext() if drain is None else drain.told(Stage.CUTTING, cut_short):
                    yield listener.cancel
            finally:
                listener.cancel()
    except TimeoutError:
        if left:
            raise ClientDisconnected from None
        if cut and drain is not None:
            raise drain.error() from None
        raise


async def until_disconnect(request: Request, work: Awaitable[T]) -> T:
    """Return what ``work`` gives; cancel it and raise ``ClientDisconnected`` if the client leaves first."""
    async with cancelled_on_disconnect(request.receive, request.state.resources.drain):
        return await work
    raise AssertionError("the block above returns or raises")
