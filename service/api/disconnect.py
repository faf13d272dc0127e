"""Noticing that the client has left, while we wait for something else."""

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
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


class cancelled_on_disconnect:  # noqa: N801 - reads as the context manager that it is
    """Cancel the block as soon as the client leaves, and raise ``ClientDisconnected`` then.

    Given a drain, raises ``Draining`` instead where it has no more time for this. The request's body must have been
    read: whatever comes after it is the disconnect. Nothing else tells us while the provider is silent, and every token
    that it goes on to write is paid for. Calling what entering gives ends the listening.

    A class: a generator, and one more for the drain, would take twice the memory for as long as a stream is open.
    """

    __slots__ = ("_cut", "_drain", "_guard", "_left", "_receive", "_scope", "_stop_listening")

    def __init__(self, scope: Scope, receive: Receive, drain: Drain | None) -> None:
        self._scope = scope
        self._receive = receive
        self._drain = drain
        self._guard = asyncio.timeout(None)
        self._left = self._cut = False

    async def __aenter__(self) -> Callable[[], object]:
        await self._guard.__aenter__()
        self._stop_listening = stop = _on_departure(self._scope, self._receive, self._leave)
        if self._drain is not None:
            self._drain.tell(Stage.CUTTING, self._cut_short)
        return stop

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._drain is not None:
            self._drain.untell(Stage.CUTTING, self._cut_short)
        self._stop_listening()
        try:
            await self._guard.__aexit__(kind, error, traceback)
        except TimeoutError:
            self._explain()
            raise
        if isinstance(error, TimeoutError):
            self._explain()

    def _explain(self) -> None:
        """Raise what the guard's ``TimeoutError`` stands for, if it is ours."""
        if self._left:
            raise ClientDisconnected from None
        if self._cut and self._drain is not None:
            raise self._drain.error() from None

    def _cut_short(self) -> None:
        if not self._left:  # what is being left has no more time anyway
            self._cut = True
            self._stop()

    def _leave(self) -> None:
        if not self._cut:
            self._left = True
            self._stop()

    def _stop(self) -> None:
        self._guard.reschedule(asyncio.get_running_loop().time())


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
