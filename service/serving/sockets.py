"""The sockets we listen on, bound before anything else starts, so that a port in use is told in one line."""

import errno
import socket

from service.config import ConfigError, Problem, ServerSettings

BACKLOG = 2_048
"""Connections that may wait to be accepted; as uvicorn and gunicorn have it."""


def listen(server: ServerSettings) -> socket.socket:
    """Take the port of the API, and see that the metrics' is free.

    Raises ``ConfigError`` naming the setting where one cannot be taken.
    """
    bind(server.metrics_host or server.host, server.metrics_port, setting="server.metrics_port").close()
    return bind(server.host, server.port, setting="server.port")


def bind(host: str, port: int, *, setting: str) -> socket.socket:
    """Bind a TCP socket; raise ``ConfigError`` naming ``{setting}.host`` or ``{setting}.port`` where that fails."""
    prefix, _, port_name = setting.rpartition(".")
    host_setting = f"{prefix}.{port_name.replace('port', 'host')}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise _problem(host_setting, f"{host!r} ({error.strerror})", "an address of this machine") from None
    bound = socket.socket(family, kind, protocol)
    try:
        # Otherwise the port of a service that has just ended could not be taken for a minute.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        # Two can bind with SO_REUSEADDR; only one can listen.
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        match error.errno:
            case errno.EADDRINUSE:
                got, takes = f"{port}, which is in use on {host}", "a free port, or 0 for any"
            case errno.EACCES:
                got, takes = f"{port}, which this user may not take", "a port above 1023"
            case errno.EADDRNOTAVAIL:
                raise _problem(host_setting, f"{host!r}, which this machine does not have", "one of its own") from None
            case _:
                got, takes = f"{port} ({error.strerror})", "a free port"
        raise _problem(setting, got, takes) from None
    return bound


def address_of(bound: socket.socket) -> str:
    """Write the address at which this machine itself reaches the socket, for people: ``http://127.0.0.1:8000``."""
    host, port = bound.getsockname()[:2]
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{reachable}:{port}"


def _problem(setting: str, got: str, takes: str) -> ConfigError:
    return ConfigError([Problem(setting, got, takes)])
