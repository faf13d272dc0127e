"""Sends one signed message, to an address that was checked when its name had been looked up."""

import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from enum import Enum
from ipaddress import ip_address

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from typing_extensions import override

from service.domain.clock import Clock
from service.webhooks.address import Forbidden, Network, check_address, check_url
from service.webhooks.lookups import Lookups
from service.webhooks.signature import signed_headers

GONE = 410
"""The receiver wants no more of it, by the specification."""


class Sent(Enum):
    """What became of one attempt."""

    DELIVERED = "delivered"
    FAILED = "failed"
    """To be tried again: no answer in time, or none of 2xx. A redirect is not followed."""
    REFUSED = "refused"
    """Not to be tried again: the receiver is gone, or may not be reached."""


class WebhookSender:
    """Sends messages over connections of its own, to public addresses and those of networks that are allowed."""

    def __init__(
        self,
        *,
        secrets: Callable[[], Sequence[bytes]],
        allow_http: bool,
        allow_networks: Sequence[Network],
        timeout_s: float,
        clock: Clock,
    ) -> None:
        self._secrets = secrets
        self._allow_http = allow_http
        self._allow_networks = allow_networks
        self._timeout_s = timeout_s
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["WebhookSender"]:
        """Give the sender, with its connections."""
        connector = aiohttp.TCPConnector(
            resolver=_CheckedResolver(self._allow_networks),
            # Hosts that are numbers, in whatever spelling, are not looked up: here is what is really connected to.
            socket_factory=self._checked_socket,
            use_dns_cache=False,
            force_close=True,
            limit=0,  # whoever sends counts by callers
        )
        async with aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            trust_env=False,  # whatever proxy the environment names, it would look the name up itself
            cookie_jar=aiohttp.DummyCookieJar(),  # what one receiver sets is nothing to another
        ) as self._session:
            yield self

    def _checked_socket(self, address: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, protocol, _, place = address
        _check(str(place[0]), self._allow_networks)
        return socket.socket(family, kind, protocol)

    async def send(self, url: str, message_id: str, body: bytes) -> tuple[Sent, str]:
        """Send a message; tell what became of it, and why in a few words."""
        try:
            check_url(url, allow_http=self._allow_http, allow_networks=self._allow_networks)
        except Forbidden as error:
            return Sent.REFUSED, str(error)
        secrets = self._secrets()
        if not secrets:  # their files cannot be read, or not yet
            return Sent.FAILED, "there is no secret to sign with"
        headers = signed_headers(secrets, message_id=message_id, timestamp=int(self._clock.wall()), body=body)
        headers["content-type"] = "application/json"
        try:
            status = await self._status(url, headers, body)
        except (_NotPublicError, UnicodeError, aiohttp.InvalidURL) as error:
            return Sent.REFUSED, str(error)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            if isinstance(error.__cause__, _NotPublicError):
                return Sent.REFUSED, str(error.__cause__)
            return Sent.FAILED, type(error).__name__
        return _outcome_of(status), str(status)

    async def _status(self, url: str, headers: dict[str, str], body: bytes) -> int:
        if self._session is None:
            raise AssertionError("the sender is not opened")
        async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as answer:
            return answer.status


def _outcome_of(status: int) -> Sent:
    if 200 <= status < 300:  # noqa: PLR2004 - the class of success
        return Sent.DELIVERED
    return Sent.REFUSED if status == GONE else Sent.FAILED


class _NotPublicError(OSError):
    """The name leads where webhooks may not go."""


class _CheckedResolver(AbstractResolver):
    """Looks names up, and gives only what was checked: what is connected to is what was looked at (no rebinding)."""

    def __init__(self, allow_networks: Sequence[Network]) -> None:
        self._allow_networks = allow_networks
        self._lookups = Lookups()

    @override
    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        results: list[ResolveResult] = []
        for number, _, protocol, _, address in await self._lookups.find(host, port, family):
            # Not even one: who answers with several may mean the private one.
            _check(str(address[0]), self._allow_networks)
            results.append(
                ResolveResult(
                    hostname=host,
                    host=str(address[0]),
                    port=port,
                    family=number,
                    proto=protocol,
                    flags=socket.AI_NUMERICHOST,
                )
            )
        return results

    @override
    async def close(self) -> None:
        """Keep nothing."""


def _check(address: str, allow_networks: Sequence[Network]) -> None:
    try:
        check_address(ip_address(address.partition("%")[0]), allow_networks)
    except Forbidden as error:
        raise _NotPublicError(str(error)) from None
