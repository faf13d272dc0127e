"""What uvicorn is told, alone or under gunicorn."""

from typing import Any

from service.config import Settings
from service.serving.protocols import HttpProtocol, WebSocketProtocol

KEEP_ALIVE_S = 75
"""Seconds for which an idle connection is kept: longer than the 60 s of common proxies, whose next request would
otherwise meet a connection that we are just closing (a sporadic 502 in theirs)."""
SPARE_S = 5
"""Seconds beyond the longest generation, to write its end."""


def shutdown_timeout_s(settings: Settings) -> int:
    """How long a stop waits for what runs: no generation that a provider may still finish is cut."""
    totals = [provider.timeouts_s.total for provider in settings.providers.values()]
    return round(max(totals, default=0.0)) + SPARE_S


def uvicorn_options(settings: Settings) -> dict[str, Any]:
    """Name every option that differs from uvicorn's default and holds for each of our processes."""
    return {
        "loop": "uvloop",
        "http": HttpProtocol,
        "ws": WebSocketProtocol,
        # Our own limit is checked by the socket's reader and names itself; this one only keeps memory.
        "ws_max_size": 2 * settings.server.max_message_bytes,
        "lifespan": "on",
        "access_log": False,
        "server_header": False,
        # Nobody's word is taken for who calls: no route looks at the peer's address.
        "proxy_headers": False,
        "log_config": None,
        "timeout_keep_alive": KEEP_ALIVE_S,
    }
