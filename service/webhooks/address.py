"""Where webhooks may go: a caller names the address, and must not reach through us what it cannot reach itself."""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from urllib.parse import urlsplit

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address

LONGEST = 2_048
_NAT64 = IPv6Network("64:ff9b::/96")
"""Addresses that a translator makes IPv4 ones of, private ones too (RFC 6052)."""


class Forbidden(ValueError):  # noqa: N818 - it reads as what the address is
    """Webhooks may not go there; the message says why."""


def check_url(url: str, *, allow_http: bool, allow_networks: Sequence[Network]) -> None:
    """Raise ``Forbidden`` for an address that can be told to be wrong before its name is looked up."""
    if len(url) > LONGEST:
        raise Forbidden(f"has more than {LONGEST} characters")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise Forbidden("is no URL") from None
    if parts.scheme != "https" and not (allow_http and parts.scheme == "http"):
        raise Forbidden("takes https://…")
    if not host:
        raise Forbidden("has no host")
    if parts.username is not None or parts.password is not None:
        raise Forbidden("must not hold a password: messages are signed")
    if parts.fragment:
        raise Forbidden("must not hold a fragment")
    literal = _literal(host)
    if literal is not None:
        check_address(literal, allow_networks)
    elif host == "localhost" or host.endswith(".localhost"):
        check_address(ip_address("127.0.0.1"), allow_networks)


def check_address(address: Address, allow_networks: Sequence[Network]) -> None:
    """Raise ``Forbidden`` for an address that is not of the public internet, nor in a network that is allowed."""
    if any(address.version == network.version and address in network for network in allow_networks):
        return
    for real in _meant(address):
        if not real.is_global or real.is_multicast:
            raise Forbidden("leads to an address that is not of the public internet")


def _meant(address: Address) -> Sequence[Address]:
    """Return what the address leads to: an IPv6 one may stand for one of IPv4."""
    if isinstance(address, IPv4Address):
        return (address,)
    if address.ipv4_mapped is not None:
        return (address.ipv4_mapped,)
    if address in _NAT64:
        return (IPv4Address(int(address) & 0xFFFF_FFFF),)
    if address.sixtofour is not None:
        return (address, address.sixtofour)
    return (address,)


def _literal(host: str) -> Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None
