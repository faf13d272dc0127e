"""Where webhooks may go: a caller names the address, and must not reach through us what it cannot reach itself."""

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from yarl import URL

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address

LONGEST = 2_048
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,253}")
"""A name as it is looked up, after IDNA (RFC 1035 §2.3.4; underscores stand in names that work)."""
_NAT64 = IPv6Network("64:ff9b::/96")
"""Addresses that a translator makes IPv4 ones of, private ones too (RFC 6052)."""
_NOT_PUBLIC = tuple(
    map(
        ip_network,
        (
            "192.0.0.0/24",  # protocol assignments (RFC 6890 §2.2.2)
            "192.88.99.0/24",  # relays of 6to4 (RFC 7526)
            "168.63.129.16/32",  # Azure's host (its manual: "What is IP address 168.63.129.16?", Virtual Network)
            "::/96",  # IPv4-compatible (RFC 4291 §2.5.5.1)
            "::ffff:0:0:0/96",  # IPv4-translated (RFC 2765 §2.1)
            "64:ff9b:1::/48",  # translators of a network's own (RFC 8215)
            "2001::/23",  # protocol assignments, Teredo among them (RFC 2928)
            "2002::/16",  # 6to4 (RFC 7526)
            "3fff::/20",  # documentation (RFC 9637)
            "5f00::/16",  # segment routing (RFC 9602)
            "fec0::/10",  # site-local (RFC 3879)
        ),
    )
)
"""Beside ``is_global``, which does not know all of it, and not the same in each version of Python."""


class Forbidden(ValueError):  # noqa: N818 - it reads as what the address is
    """Webhooks may not go there; the message says why."""


def check_url(url: str, *, allow_http: bool, allow_networks: Sequence[Network]) -> None:
    """Raise ``Forbidden`` for an address that can be told to be wrong before its name is looked up."""
    parts, host = _read(url)
    if parts.scheme != "https" and not (allow_http and parts.scheme == "http"):
        raise Forbidden("takes https://…")
    if not host:
        raise Forbidden("has no host")
    if parts.user is not None or parts.password is not None:
        raise Forbidden("must not hold a password: messages are signed")
    if parts.fragment:
        raise Forbidden("must not hold a fragment")
    literal = _literal(host)
    if literal is not None:
        check_address(literal, allow_networks)
    elif not _NAME.fullmatch(host):
        raise Forbidden("has a host that no name can be")
    elif host == "localhost" or host.endswith(".localhost"):
        check_address(ip_address("127.0.0.1"), allow_networks)


def _read(url: str) -> tuple[URL, str]:
    """Return an address and its host, as the client that sends reads them: two readers could see two hosts."""
    if len(url) > LONGEST:
        raise Forbidden(f"has more than {LONGEST} characters")
    try:
        parts = URL(url)
        host = parts.raw_host or ""
        host.encode("idna")  # as its look-up does
    except UnicodeError:
        raise Forbidden("has a host that no name can be") from None
    except ValueError:
        raise Forbidden("is no URL") from None
    return parts, host


def check_address(address: Address, allow_networks: Sequence[Network]) -> None:
    """Raise ``Forbidden`` for an address that is not of the public internet, nor in a network that is allowed."""
    if _within(address, allow_networks):
        return
    real = _meant(address)
    if not real.is_global or real.is_multicast or _within(real, _NOT_PUBLIC):
        raise Forbidden("leads to an address that is not of the public internet")


def _within(address: Address, networks: Sequence[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)


def _meant(address: Address) -> Address:
    """Return what the address leads to: an IPv6 one may stand for one of IPv4."""
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address


def _literal(host: str) -> Address | None:
    try:
        return ip_address(host.partition("%")[0])
    except ValueError:
        return None
