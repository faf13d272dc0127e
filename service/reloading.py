"""Taking over a changed configuration while requests run: all of it at once, or none of it."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from service.config import ConfigError, Settings
from service.config.reload import (
    SettingsSource,
    changes,
    refuse_another_profile,
    with_addresses,
    with_reloaded,
)
from service.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

CHECK_INTERVAL_S = 0.5
"""Seconds between two looks at the file, of which two have to find it unchanged where it was written to just before: a
client key that was taken out works at most twice so long, and the time that it takes to read the file."""
RETRY_INTERVAL_S = 5.0
"""Seconds after which a file that could not be used is read again: what was wrong may be a file that it names."""


class Reloadable(Protocol):
    """A part of the process that goes by settings which can change."""

    async def prepare(self, settings: Settings) -> Callable[[], object]:
        """Make everything that can fail or takes time; return what takes it over at once and cannot fail.

        Raises ``OSError`` or ``ValueError`` where the settings cannot be taken over. What it returns may never be
        called, if a later part cannot take them over; a part that opens something has to be the last.
        """
        ...


class SettingsReload:
    """Follows the file of one process; each worker of several has its own."""

    def __init__(
        self, *, source: SettingsSource, running: Settings, parts: Sequence[Reloadable], metrics: Metrics
    ) -> None:
        """``running`` are the settings that the parts go by already; with the addresses of what was started."""
        self._source = source
        self._running = running
        self._parts = parts
        self._metrics = metrics
        self._told: str | None = None
        """What was wrong when it was last tried, so that it is said once."""
        metrics.config_reload_ok.set(1)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Take over what changed since the settings were read, then follow the file while the context is open."""
        if not self._source.has_file:
            yield
            return
        await self.check()
        task = asyncio.create_task(self._follow(), name="config-reload")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def check(self, *, again: bool = False) -> None:
        """Take the file over if it has changed and is whole, or if it is to be tried ``again`` as it was."""
        if not self._source.has_changed() and not (again and self._source.is_as_loaded()):
            return
        try:
            # A file of hundreds of models takes longer than other requests should wait.
            loaded = await asyncio.to_thread(self._source.load)
        except (ConfigError, OSError, ValueError) as error:
            # What is written while it is read is a change for the next look.
            if self._source.is_as_loaded():
                self._reject(error)
            return
        if not self._source.is_as_loaded():
            return
        try:
            await self._take_over(loaded)
        except (ConfigError, OSError, ValueError) as error:
            self._reject(error)
        else:
            self._told = None
            self._metrics.config_reload_ok.set(1)

    async def _take_over(self, loaded: Settings) -> None:
        refuse_another_profile(loaded, self._running)
        settings = with_addresses(loaded, self._running)
        reloaded, kept = changes(self._running, settings)
        # No secret is in them: only names.
        kept = [name for name in kept if name != "redis.url" or loaded.redis.url is not None]
        if kept:
            logger.warning("the configuration has changed, these settings need a restart: %s", ", ".join(kept))
        if not reloaded:
            return
        commits = [await part.prepare(settings) for part in self._parts]
        # No await from here on: no request sees one part's new settings and another's old ones.
        for commit in commits:
            commit()
        self._running = with_reloaded(self._running, settings)
        logger.info("the configuration has changed and is taken over: %s", ", ".join(reloaded))

    def _reject(self, error: Exception) -> None:
        self._metrics.config_reload_ok.set(0)
        if str(error) == self._told:
            return
        self._told = str(error)
        self._metrics.config_reload_failures.inc()
        logger.error("the changed configuration cannot be used, all stays as it was:\n%s", error)

    async def _follow(self) -> None:
        failed_for_s = 0.0
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            failed_for_s = 0.0 if self._told is None else failed_for_s + CHECK_INTERVAL_S
            try:
                await self.check(again=failed_for_s >= RETRY_INTERVAL_S)
            except Exception:  # the outer edge of the task: a defect here must not end the following of the file
                logger.exception("the configuration could not be followed, by a defect")
                self._metrics.unhandled_errors.labels("config").inc()
            if failed_for_s >= RETRY_INTERVAL_S:
                failed_for_s = 0.0
