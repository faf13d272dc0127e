"""Connections that were closed while they were idle, told from calls that may have been paid for."""

from collections import deque
from collections.abc import Mapping
from typing import cast

import aiohttp
import pytest
from aiohttp import ClientConnectionResetError, ClientOSError, ServerDisconnectedError
from yarl import URL

from service.config import TimeoutSettings
from service.domain.clock import Deadline, SystemClock
from service.errors import InvalidRequest, UpstreamError, UpstreamInvalid, UpstreamMisconfigured, UpstreamUnavailable
from service.providers.allowance import read_openai
from service.providers.http import MAX_STALE_CONNECTIONS, Ask, HttpUpstream
from service.providers.keys import KeyRing


def stale() -> ClientOSError:
    """Make what aiohttp raises when a pooled connection turns out to be closed before a byte was written."""
    error = ClientOSError(None, "Can not write request body")
    error.__cause__ = ClientConnectionResetError("Cannot write to closing transport")
    return error


class Session:
    """Raises what it was given, one error for each call."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = deque(errors)
        self.calls = 0

    async def post(self, _: URL, **__: object) -> aiohttp.ClientResponse:
        self.calls += 1
        raise self.errors.popleft()


def refused(status: int, _: Mapping[str, str], __: bytes) -> UpstreamError:
    return UpstreamInvalid(str(status))


async def post(session: Session, payload: dict[str, object] | None = None) -> None:
    upstream = HttpUpstream(
        provider="up",
        session=cast("aiohttp.ClientSession", session),
        timeouts_s=TimeoutSettings(),
        keys=KeyRing(provider="up", keys=(), files=(), clock=SystemClock()),
        headers=lambda _: {},
        refused=refused,
        left=read_openai,
    )
    ask = upstream.keyed(Ask(URL("http://127.0.0.1/v1"), payload or {}))
    await upstream.post(ask, deadline=Deadline.after(5, SystemClock()))


async def test_request_that_was_never_written_is_sent_again() -> None:
    session = Session(stale(), stale(), ServerDisconnectedError())
    with pytest.raises(UpstreamUnavailable):
        await post(session)
    assert session.calls == 3


async def test_request_that_may_have_been_read_is_not_sent_again() -> None:
    for error in (ServerDisconnectedError(), ClientOSError(104, "Connection reset by peer")):
        session = Session(error, stale())
        with pytest.raises(UpstreamUnavailable):
            await post(session)
        assert session.calls == 1


async def test_stale_connections_are_not_tried_for_ever() -> None:
    session = Session(*(stale() for _ in range(20)))
    with pytest.raises(UpstreamUnavailable):
        await post(session)
    assert session.calls == MAX_STALE_CONNECTIONS + 1


async def test_address_that_is_none_is_a_misconfiguration() -> None:
    with pytest.raises(UpstreamMisconfigured):
        await post(Session(aiohttp.InvalidURL("x")))


async def test_request_that_cannot_be_written_is_a_misconfiguration() -> None:
    for error in (ValueError("Newline in headers: sk-1"), UnicodeEncodeError("latin-1", "sk-\u0100", 3, 4, "no")):
        with pytest.raises(UpstreamMisconfigured) as caught:
            await post(Session(error))
        assert "sk-" not in str(caught.value)


async def test_text_that_json_cannot_carry_is_the_callers_mistake() -> None:
    with pytest.raises(InvalidRequest):
        await post(Session(), {"text": "\ud800"})
