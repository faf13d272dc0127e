"""What goes up in a call, and what cannot; the connections themselves are tested in ``test_http1``."""

from collections.abc import Mapping

import pytest
from yarl import URL

from service.config import TimeoutSettings
from service.domain.clock import Deadline, SystemClock
from service.errors import InvalidRequest, UpstreamError, UpstreamInvalid, UpstreamMisconfigured
from service.providers.allowance import read_openai
from service.providers.dial import Origin
from service.providers.http import Ask, HttpUpstream
from service.providers.http1 import Connection
from service.providers.http_pool import HttpPool
from service.providers.keys import KeyRing


async def nowhere(_: Origin, __: float) -> Connection:
    raise AssertionError("nothing is dialled")


def refused(status: int, _: Mapping[str, str], __: bytes) -> UpstreamError:
    return UpstreamInvalid(str(status))


async def post(
    payload: dict[str, object] | None = None, *, url: str = "http://127.0.0.1/v1", header: str = "k"
) -> None:
    upstream = HttpUpstream(
        provider="up",
        pool=HttpPool(dial=nowhere),
        timeouts_s=TimeoutSettings(),
        keys=KeyRing(provider="up", keys=(), files=(), clock=SystemClock()),
        headers=lambda _: {"Authorization": header},
        refused=refused,
        left=read_openai,
    )
    ask = upstream.keyed(Ask(URL(url), payload or {}))
    await upstream.post(ask, deadline=Deadline.after(5, SystemClock()))


@pytest.mark.parametrize("url", ["", "http:///v1", "ftp://host/v1"])
async def test_address_that_is_none_is_a_misconfiguration(url: str) -> None:
    with pytest.raises(UpstreamMisconfigured):
        await post(url=url)


@pytest.mark.parametrize("header", ["sk-1\r\nx: y", "sk-1\n", "sk-1\r", "sk-1\0", "sk-\ud800"])
async def test_request_that_cannot_be_written_is_a_misconfiguration(header: str) -> None:
    with pytest.raises(UpstreamMisconfigured) as caught:
        await post(header=header)
    assert "sk-" not in str(caught.value)


async def test_text_that_json_cannot_carry_is_the_callers_mistake() -> None:
    with pytest.raises(InvalidRequest):
        await post({"text": "\ud800"})
