"""``/metrics`` on a port of its own, which is never routed to users."""

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry, start_http_server

from service.config import ServerSettings


class MetricsPortInUse(OSError):  # noqa: N818 - a condition of the machine, told in one line
    """Something else listens where the metrics should."""


@asynccontextmanager
async def open_metrics_server(settings: ServerSettings, registry: CollectorRegistry) -> AsyncIterator[None]:
    """Serve the registry from a thread, so that a scrape neither waits for the event loop nor holds it up.

    Raise ``MetricsPortInUse`` if the port is taken.
    """
    host = settings.metrics_host or settings.host
    try:
        server, thread = start_http_server(settings.metrics_port, addr=host, registry=registry)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise MetricsPortInUse(
            f"server.metrics_port: {host}:{settings.metrics_port} is in use; set another, or 0 for a free one"
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
