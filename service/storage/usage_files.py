"""Records as files for other programs: one JSON object a line, a file for each day, as ClickHouse's JSONEachRow."""

import base64
import fcntl
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import orjson

from service.domain.usage_columns import columns_of
from service.domain.usage_page import START, Page, SetAside, Taken, Unreadable, UsageLog, position_order
from service.domain.usage_record import UsageRecord
from service.errors import StoreUnavailable
from service.storage.usage_json import record_as_json

TAIL_BYTES = 1 << 16
"""What is read of a file's end at first; more where no whole line is in it."""


class UsageFiles:
    """A sink for records. One process at a time writes those of a ledger to a folder; the others find its lock.

    Each ledger has files of its own, so that several may share a folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock: int | None = None
        self._after: str | None = None
        self._ledger = ""

    async def drain(self, log: UsageLog) -> Taken:
        """Append the page that follows what is there. Raises ``StoreUnavailable``.

        The last whole line says where to go on, so none is lost and none written twice, whenever the process dies.
        Where the files were taken away since, a file of its own says it.
        """
        ledger = await log.ledger_id()
        try:
            if ledger != self._ledger:
                self.close()
                self._ledger, self._after = ledger, None
            if not self._is_ours():
                return Taken()
            if self._after is None:
                self._after = self._last_position()
            page = await log.page(ledger, self._after)
            aside: list[SetAside] = []
            if page:
                aside = self._append(page)
                self._after = page[-1][0]
                self._note(self._after)
        except OSError as error:
            self._after = None  # a part of a line may stand there
            raise StoreUnavailable(f"the files of usage cannot be written ({type(error).__name__})") from error
        return Taken(len(page), tuple(aside), self._after)

    def close(self) -> None:
        """Let another process write."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _is_ours(self) -> bool:
        if self._lock is None:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(self._folder / f".lock-{self._ledger}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                return False
            self._lock = lock
        return True

    def _last_position(self) -> str:
        """Return the position of the newest record; cut off what was begun behind it."""
        found = [self._noted()]
        for path in sorted(self._folder.glob(f"usage-*-{self._ledger}.jsonl"), reverse=True):
            position = _position_at_end(path)
            if position is not None:
                found.append(position)
                break
        return max(found, key=position_order)

    @property
    def _position_path(self) -> Path:
        return self._folder / f".position-{self._ledger}"

    def _noted(self) -> str:
        try:
            position = self._position_path.read_text("ascii")
            position_order(position)
        except (FileNotFoundError, ValueError):
            return START
        return position

    def _note(self, position: str) -> None:
        new = self._folder / f".position-{self._ledger}.new"
        new.write_text(position, "ascii")
        new.replace(self._position_path)

    def _append(self, page: Page) -> list[SetAside]:
        """Append what can be written, after what cannot has been set aside."""
        lines: list[bytes] = []
        aside: list[SetAside] = []
        aside_lines: list[bytes] = []
        for position, one in page:
            line = _line(position, one)
            if isinstance(line, Unreadable):
                aside.append(SetAside(position, line.reason))
                aside_lines.append(_aside_line(position, line))
            else:
                lines.append(line)
        self._write("aside", aside_lines)
        self._write("usage", lines)
        return aside

    def _write(self, name: str, lines: Sequence[bytes]) -> None:
        if not lines:
            return
        path = self._folder / f"{name}-{datetime.now(UTC):%Y-%m-%d}-{self._ledger}.jsonl"
        text = b"".join(lines)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            if os.write(file, text) < len(text):
                raise OSError("no space is left")
            os.fsync(file)
        finally:
            os.close(file)


def _line(position: str, one: UsageRecord | Unreadable) -> bytes | Unreadable:
    if isinstance(one, Unreadable):
        return one
    try:
        return orjson.dumps({**columns_of(one), "position": position}, default=_plain) + b"\n"
    except (TypeError, ValueError, OverflowError, OSError) as error:  # a time or a number that has no place in a column
        return Unreadable(record_as_json(one), type(error).__name__)


def _aside_line(position: str, one: Unreadable) -> bytes:
    raw = base64.b64encode(one.raw).decode("ascii")
    return orjson.dumps({"position": position, "reason": one.reason, "record_base64": raw}) + b"\n"


def _position_at_end(path: Path) -> str | None:
    """Return the position that the last readable line of a file has, if any; cut off a line that was not finished."""
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        length = TAIL_BYTES
        while True:
            start = max(0, size - length)
            file.seek(start)
            tail = file.read(size - start)
            whole = tail[: tail.rfind(b"\n") + 1]
            position = _last_of(whole if start == 0 else whole.partition(b"\n")[2])
            if position is not None or start == 0:
                file.truncate(start + len(whole))
                return position
            length *= 2


def _last_of(lines: bytes) -> str | None:
    for line in reversed(lines.splitlines()):
        try:
            position: str = orjson.loads(line)["position"]
            position_order(position)
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
        return position
    return None


def _plain(value: object) -> str:
    if isinstance(value, Decimal):
        return f"{value:f}"
    raise TypeError(f"a column cannot be {type(value).__name__}")
