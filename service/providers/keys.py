"""A provider's keys: taken in turn, and read again when their files change."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pydantic import SecretStr

from service.config.keys import fits_a_header
from service.domain.clock import Clock
from service.errors import UpstreamMisconfigured

logger = logging.getLogger(__name__)

CHECK_INTERVAL_S = 1.0
"""How long a change of a key file may go unnoticed; a stat for each call would be a system call on the hot path."""

MAX_HEADERS = 64
"""For how many keys headers are remembered; far more than a ring has, so that only replaced ones are forgotten."""


class _KeyFile:
    """One key in one file.

    A file that cannot be read, or holds no key, keeps its last one: it may be in the middle of its replacement.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version: tuple[int, int, int] | None = None
        self._told = False
        self.key: str | None = None

    def refresh(self) -> None:
        """Read the file again if it is another one than the last time."""
        try:
            # Kubernetes replaces a mounted secret by moving a symbolic link, which changes the inode and not always
            # the time.
            status = os.stat(self._path)  # noqa: PTH116 - half the cost of Path.stat
            version = (status.st_mtime_ns, status.st_ino, status.st_size)
            if version == self._version:
                return
            key = self._path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as exc:
            if not self._told:
                logger.warning("key file %s cannot be read: %s", self._path, type(exc).__name__)
            self._told = True
            return
        self._version = version
        self._told = False
        if fits_a_header(key):
            self.key = key
        else:
            reason = "holds more than one key of visible ASCII characters" if key else "is empty"
            logger.warning("key file %s %s", self._path, reason)


class KeyRing:
    """Gives out keys in turn."""

    def __init__(self, *, provider: str, keys: Sequence[SecretStr], files: Sequence[Path], clock: Clock) -> None:
        self._provider = provider
        self._given = tuple(key.get_secret_value() for key in keys)
        self._files = tuple(_KeyFile(path) for path in files)
        self._clock = clock
        self._turn = 0
        self._next_check = -float("inf")
        self._keys: tuple[str, ...] = self._given

    def take(self) -> str | None:
        """Return the next key; None if the provider has no keys by its configuration.

        Raises ``UpstreamMisconfigured`` if there should be keys, and no file has given one yet.
        """
        if self._files:
            now = self._clock.monotonic()
            if now >= self._next_check:
                self._next_check = now + CHECK_INTERVAL_S
                self._refresh()
        keys = self._keys
        if not keys:
            if self._files:
                raise UpstreamMisconfigured(
                    "no key file of the provider holds a key that can be used", provider=self._provider
                )
            return None
        self._turn = (self._turn + 1) % len(keys)
        return keys[self._turn]

    def _refresh(self) -> None:
        for file in self._files:
            file.refresh()
        self._keys = (*self._given, *(file.key for file in self._files if file.key is not None))


class SdkHeaders:
    """The headers that an official SDK would send with the next key, made once for each key."""

    def __init__(self, keys: KeyRing, headers_for: Callable[[str | None], Mapping[str, object]]) -> None:
        """``headers_for`` asks the SDK; what it marks as left out is no text."""
        self._keys = keys
        self._headers_for = headers_for
        self._made: dict[str | None, Mapping[str, str]] = {}

    def __call__(self) -> Mapping[str, str]:
        """Return the headers of the next call. Raises ``UpstreamMisconfigured`` as :meth:`KeyRing.take` does."""
        key = self._keys.take()
        headers = self._made.get(key)
        if headers is None:
            headers = {name: value for name, value in self._headers_for(key).items() if isinstance(value, str)}
            if len(self._made) >= MAX_HEADERS:
                self._made.clear()
            self._made[key] = headers
        return headers
