"""Records as files for other programs: one JSON object a line, a file for each day, as ClickHouse's JSONEachRow."""

import fcntl
import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import orjson

from service.domain.usage_columns import columns_of
from service.domain.usage_page import Page, Taken
from service.errors import StoreUnavailable

TAIL_BYTES = 1 << 16
"""More than a line has."""


class UsageFiles:
    """A sink for records. One process at a time writes to a folder; the others find its lock."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock: int | None = None
        self._after: str | None = None

    async def drain(self, read: Callable[[str], Awaitable[Page]]) -> Taken:
        """Append the page that follows what is there. Raises ``StoreUnavailable``.

        The last whole line says where to go on, so none is lost and none written twice, whenever the process dies.
        """
        try:
            if not self._is_ours():
                return Taken()
            if self._after is None:
                self._after = self._last_position()
            page = await read(self._after)
            if page:
                self._append(page)
                self._after = page[-1][0]
        except OSError as error:
            self._after = None  # a part of a line may stand there
            raise StoreUnavailable(f"the files of usage cannot be written ({type(error).__name__})") from error
        return Taken(len(page))

    def close(self) -> None:
        """Let another process write."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _is_ours(self) -> bool:
        if self._lock is None:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                return False
            self._lock = lock
        return True

    def _last_position(self) -> str:
        """Return the position of the newest whole line; cut off what was begun behind it."""
        for path in sorted(self._folder.glob("usage-*.jsonl"), reverse=True):
            with path.open("r+b") as file:
                size = file.seek(0, os.SEEK_END)
                start = max(0, size - TAIL_BYTES)
                file.seek(start)
                tail = file.read()
                whole = tail[: tail.rfind(b"\n") + 1]
                file.truncate(start + len(whole))
            if whole:
                position: str = orjson.loads(whole.splitlines()[-1])["position"]
                return position
        return "0-0"

    def _append(self, page: Page) -> None:
        path = self._folder / f"usage-{datetime.now(UTC):%Y-%m-%d}.jsonl"
        lines = b"".join(
            orjson.dumps({**columns_of(record), "position": position}, default=_plain) + b"\n"
            for position, record in page
        )
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            if os.write(file, lines) < len(lines):
                raise OSError("no space is left")
            os.fsync(file)
        finally:
            os.close(file)


def _plain(value: object) -> str:
    if isinstance(value, Decimal):
        return f"{value:f}"
    raise TypeError(f"a column cannot be {type(value).__name__}")
