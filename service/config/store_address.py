"""Whether the client library can use the address of the shared store; connects to nothing."""

import re
from importlib import import_module
from typing import Any
from urllib.parse import parse_qsl, urlsplit

SCHEMES = ("redis://", "rediss://", "unix://")
_OPTIONS = ("client_name", "db", "password", "socket_keepalive", "username")
"""What the query may set, together with ``ssl_…``; the rest of the library's options (timeouts, the size of the pool,
the protocol) are ours to choose, and an address would win over us."""
_HIGHEST_PORT = 65_535


def checked_store_address(url: str) -> str:
    """Return an address that can be used; raise ``ValueError`` with what can, never with the address.

    Reads the certificates that a ``rediss://`` address names.
    """
    if not url.startswith(SCHEMES):
        raise _takes("starts with redis://, rediss:// or unix://")
    try:
        address = urlsplit(url)
        port = address.port
    except ValueError:
        raise _takes(f"has a host, and a port from 1 to {_HIGHEST_PORT}") from None
    if address.fragment:
        raise _takes("has no #; in a password it is written %23")
    if address.scheme == "unix":
        if address.hostname or not address.path.strip("/"):
            raise _takes("has the path of a socket: unix:///run/store.sock")
    else:
        if not address.hostname or port == 0:
            # Left out, or 0, the library would take localhost, and 6379, without a word.
            raise _takes(f"has a host, and a port from 1 to {_HIGHEST_PORT}")
        if not re.fullmatch(r"(/\d*)?", address.path):
            raise _takes("has a number for its database: redis://store:6379/0")
    _check_options(url, address.query)
    return url


def _check_options(url: str, query: str) -> None:
    options = parse_qsl(query, keep_blank_values=True)
    if not all(value and (name in _OPTIONS or name.startswith("ssl_")) for name, value in options):
        raise _takes(f"has no options but {', '.join(_OPTIONS)} and ssl_…, each with a value")
    # Only who has a store pays for this import: a fifth of a second, which no other command should take longer.
    library: Any = import_module("redis.asyncio.connection")
    try:
        arguments: dict[str, Any] = {**library.parse_url(url)}
        kind = arguments.pop("connection_class", library.Connection)
        connection = kind(**arguments)
        if isinstance(connection, library.SSLConnection):
            connection.ssl_context.get()
    except (ValueError, TypeError, library.RedisError):
        raise _takes("has options that go with its scheme and values that they take") from None
    except OSError:
        # ssl.SSLError is one.
        raise _takes("names certificates and keys that can be read") from None
    if connection.db < 0:
        raise _takes("has a number from 0 for its database")


def _takes(what: str) -> ValueError:
    return ValueError(f"an address (redis.url or REDIS_URL) that {what}")
