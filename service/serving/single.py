"""One process, uvicorn: the default, and what runs in a pod."""

import asyncio
import socket
from collections.abc import Callable
from functools import partial

import uvicorn
import uvloop
from fastapi import FastAPI
from typing_extensions import override

from service.app import Opener, create_app, create_worker_app
from service.config import Settings
from service.config.reload import SettingsSource
from service.serving.banner import announce_start, banner, say, worker_banner
from service.serving.memory import settle
from service.serving.options import uvicorn_options
from service.serving.signals import leave_on_sigterm
from service.serving.sockets import BACKLOG, address_of
from service.shutdown import BACKSTOP_S
from service.wiring import open_embedded, open_resources


def serve(settings: Settings, listener: socket.socket, source: SettingsSource) -> None:
    """Serve until SIGTERM or SIGINT, and follow the file that ``source`` knows."""
    _run(settings, listener, partial(open_resources, source=source), create_app, banner)


def work(settings: Settings, listener: socket.socket, source: SettingsSource) -> None:
    """Work on background jobs until SIGTERM or SIGINT, and serve the probes."""
    opener = partial(open_resources, source=source, component="worker")
    _run(settings, listener, opener, create_worker_app, worker_banner)


def _run(
    settings: Settings,
    listener: socket.socket,
    opener: Opener,
    make_app: Callable[[Settings, Opener], FastAPI],
    announcement: Callable[[Settings, str], str],
) -> None:
    leave_on_sigterm()

    async def serve_until_told() -> None:
        announce_start(settings)
        async with open_embedded(settings) as started:
            config = uvicorn.Config(
                make_app(started, opener),
                **uvicorn_options(started),
                backlog=BACKLOG,
                timeout_graceful_shutdown=BACKSTOP_S,
            )
            await _Server(config, announcement(started, address_of(listener))).serve(sockets=[listener])

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve_until_told())


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
