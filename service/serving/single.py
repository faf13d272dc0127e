"""One process, uvicorn: the default, and what runs in a pod."""

import asyncio
import socket
from functools import partial

import uvicorn
import uvloop
from typing_extensions import override

from service.app import create_app
from service.config import Settings
from service.config.reload import SettingsSource
from service.serving.banner import announce_start, banner, say
from service.serving.memory import settle
from service.serving.options import uvicorn_options
from service.serving.signals import leave_on_sigterm
from service.serving.sockets import BACKLOG, address_of
from service.shutdown import BACKSTOP_S
from service.wiring import open_embedded, open_resources


def serve(settings: Settings, listener: socket.socket, source: SettingsSource) -> None:
    """Serve until SIGTERM or SIGINT, and follow the file that ``source`` knows."""
    leave_on_sigterm()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, listener, source))


async def _serve(settings: Settings, listener: socket.socket, source: SettingsSource) -> None:
    announce_start(settings)
    async with open_embedded(settings) as started:
        config = uvicorn.Config(
            create_app(started, partial(open_resources, source=source)),
            **uvicorn_options(started),
            backlog=BACKLOG,
            timeout_graceful_shutdown=BACKSTOP_S,
        )
        await _Server(config, banner(started, address_of(listener))).serve(sockets=[listener])


class _Server(uvicorn.Server):
    """Says where it is once it accepts connections."""

    def __init__(self, config: uvicorn.Config, announcement: str) -> None:
        super().__init__(config)
        self._announcement = announcement

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            settle()
            say(self._announcement)
