"""Several processes on one host: gunicorn starts and watches them, uvicorn serves in each.

The parent starts the embedded model and store once, before it forks, and serves the sum of the workers' metrics.
"""

import ctypes
import logging
import os
import signal
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any

from anyio.from_thread import start_blocking_portal
from fastapi import FastAPI
from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped] # ships no types
from gunicorn.arbiter import Arbiter  # type: ignore[import-untyped] # ships no types
from gunicorn.errors import HaltServer  # type: ignore[import-untyped] # ships no types
from gunicorn.glogging import Logger as GunicornLogger  # type: ignore[import-untyped] # ships no types
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from typing_extensions import override
from uvicorn_worker import UvicornWorker  # type: ignore[import-untyped] # ships no types

from service.app import create_app
from service.config import Settings
from service.config.reload import SettingsSource
from service.serving.banner import announce_start, banner, say
from service.serving.memory import settle
from service.serving.options import KEEP_ALIVE_S, longest_worker_stop_s, uvicorn_options
from service.serving.signals import leave_on_sigterm
from service.serving.sockets import BACKLOG, address_of
from service.shutdown import BACKSTOP_S
from service.wiring import open_embedded, open_resources

HEARTBEAT_TIMEOUT_S = 60
"""A worker whose event loop stands still for so long is replaced."""

_PR_SET_PDEATHSIG = 1
"""``prctl(2)``, Linux."""


def serve(settings: Settings, listener: socket.socket, source: SettingsSource, metrics: Path) -> None:
    """Serve until SIGTERM or SIGINT. Each worker follows the file that ``source`` knows.

    ``metrics`` is the directory that :mod:`service.serving.metrics_directory` prepared before this was imported.
    """
    leave_on_sigterm()
    announce_start(settings)
    with (
        # gunicorn blocks this thread, and whoever started a child has to be awake to watch it.
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(open_embedded(settings)) as started,
    ):
        _Application(started, listener.fileno(), address_of(listener), source, metrics).run()


class _Application(BaseApplication):  # type: ignore[misc] # untyped base
    """gunicorn, configured by our settings and by nothing else."""

    def __init__(self, settings: Settings, listener: int, address: str, source: SettingsSource, metrics: Path) -> None:
        self._settings = settings
        self._listener = listener
        self._address = address
        self._source = source
        self._metrics = metrics
        self._parent = os.getpid()
        super().__init__()

    @override
    def load_config(self) -> None:
        options: dict[str, Any] = {
            "bind": f"fd://{self._listener}",
            "backlog": BACKLOG,
            "workers": self._settings.server.workers,
            "worker_class": _worker_class(self._settings),
            "timeout": HEARTBEAT_TIMEOUT_S,
            "graceful_timeout": longest_worker_stop_s(self._settings),
            "keepalive": KEEP_ALIVE_S,
            # Its file in the home folder would be shared by every service of this user.
            "control_socket_disable": True,
            "logger_class": _Logger,
            "proc_name": "llm-api",
            "when_ready": self._when_ready,
            "post_fork": self._post_fork,
            "post_worker_init": _post_worker_init,
            "child_exit": _child_exit,
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    @override
    def load(self) -> FastAPI:
        return create_app(self._settings, partial(open_resources, source=self._source))

    @override
    def run(self) -> None:
        try:
            super().run()
        except HaltServer as halt:
            # Workers that do not start, each with its reason in the log: a traceback of gunicorn's adds nothing.
            sys.exit(halt.exit_status)
        except SystemExit as end:
            if os.getpid() != self._parent:
                # A worker ends. It must not unwind what the parent opened: that would stop the embedded store and
                # model under the other workers.
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(end.code if isinstance(end.code, int) else 1)
            if end.code:
                raise

    def _when_ready(self, _: Arbiter) -> None:
        registry = CollectorRegistry()
        MultiProcessCollector(registry, str(self._metrics))  # type: ignore[no-untyped-call]
        server = self._settings.server
        start_http_server(server.metrics_port, addr=server.metrics_host or server.host, registry=registry)
        say(banner(self._settings, self._address))

    def _post_fork(self, arbiter: Arbiter, _: UvicornWorker) -> None:
        """Make the worker end with its parent, which has what it needs: embedded model and store, and the metrics."""
        # Until its own signals are set up it has the parent's handler, which puts a signal into a queue that nobody
        # reads here: told to end in these moments, it would serve for ever.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
            if os.getppid() != self._parent:  # it ended before the kernel was asked
                os._exit(1)
        while not arbiter.SIG_QUEUE.empty():
            if arbiter.SIG_QUEUE.get() in (signal.SIGTERM, signal.SIGINT):
                os._exit(0)


class _Logger(GunicornLogger):  # type: ignore[misc] # untyped base
    """Sends gunicorn's lines, and through the worker class uvicorn's, where all others go."""

    @override
    def setup(self, cfg: object) -> None:
        self.error_log.handlers = logging.getLogger().handlers
        self.error_log.setLevel(logging.INFO)
        self.error_log.propagate = False


def _post_worker_init(_: UvicornWorker) -> None:
    settle()


def _child_exit(_: Arbiter, worker: UvicornWorker) -> None:
    # Its gauges would stay in the sum for ever.
    mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]


def _worker_class(settings: Settings) -> type[UvicornWorker]:
    options = {**uvicorn_options(settings), "timeout_graceful_shutdown": BACKSTOP_S}

    class Worker(UvicornWorker):  # type: ignore[misc] # untyped base
        CONFIG_KWARGS = options

    return Worker
