"""Where a process keeps what it could not write to the ledger yet: a file that outlives it."""

import fcntl
import logging
import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from service.domain.ledger import Batch

logger = logging.getLogger(__name__)

SUFFIX = ".journal"
READ_BYTES = 1 << 18
"""What is read of a file at once: some hundred entries."""

_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Batch)


@dataclass(frozen=True, slots=True)
class _Oldest:
    """What is to be sent next."""

    batch: Batch
    end: int
    """Where it ends: in the file, or among what is held in memory."""
    is_held: bool


class FileJournal:
    """Obeys :class:`service.engine.ledger_writer.Journal` with one file for each process, which holds a lock on it.

    A file outlives a process that is killed, and not a machine that loses power: it is not synced. Where it cannot be
    written, batches are kept in memory, and the log says so.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._path = folder / f"{name}{SUFFIX}"
        self._file: int | None = None
        self._at = 0
        """Where the oldest batch begins that is still needed."""
        self._held: deque[Batch] = deque()
        """What could not be written."""
        self._is_told = False
        """Whether the log has been told that the file cannot be written."""
        self._first: _Oldest | None = None
        self._inherited: FileJournal | None = None

    def append(self, batch: Batch) -> None:
        """See :class:`service.engine.ledger_writer.Journal`."""
        line = _ENCODER.encode(batch) + b"\n"  # also for memory: what cannot be written is refused at once
        if self._held:
            self._held.append(batch)
            return
        try:
            if self._file is None:
                self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._file = _made(self._path)
            end = os.fstat(self._file).st_size
            if os.write(self._file, line) < len(line):
                os.ftruncate(self._file, end)  # no space is left
                self._held.append(batch)
        except OSError as error:
            if not self._is_told:
                logger.error(  # noqa: TRY400 - its reason is enough
                    "the ledger is kept in memory: its file cannot be written; set usage.dir to a folder that can",
                    extra={"folder": str(self._folder), "reason": error.strerror},
                )
            self._is_told = True
            self._held.append(batch)

    def first(self, most: int) -> Batch | None:
        """See :class:`service.engine.ledger_writer.Journal`."""
        if self._first is None:
            # What could not be written is younger than all that was.
            self._first = _merged(self._lines(), most, is_held=False) or _merged(
                zip(self._held, range(1, len(self._held) + 1), strict=True), most, is_held=True
            )
        return None if self._first is None else self._first.batch

    def drop_first(self) -> None:
        """See :class:`service.engine.ledger_writer.Journal`."""
        first, self._first = self._first, None
        if first is None:
            return
        if first.is_held:
            for _ in range(first.end):
                self._held.popleft()
            return
        self._at = first.end
        if self._file is not None and self._at >= os.fstat(self._file).st_size:
            self._remove()

    def left_behind(self) -> "FileJournal | None":
        """See :class:`service.engine.ledger_writer.Journal`."""
        if self._inherited is not None and self._inherited.first(1) is not None:
            return self._inherited
        self._inherited = None
        with suppress(OSError):
            for path in sorted(self._folder.glob(f"*{SUFFIX}")):
                if path != self._path and (found := _locked(path)) is not None:
                    if found.first(1) is None:
                        found._remove()  # noqa: SLF001 - one of ours
                        continue
                    self._inherited = found
                    return found
        return None

    def release(self) -> None:
        """Let another process take its files over."""
        if self._inherited is not None:
            self._inherited.release()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _lines(self) -> Iterator[tuple[Batch, int]]:
        """Yield the batches of the file that are still needed, and where each ends; an unfinished line is none."""
        at = self._at
        rest = b""
        while self._file is not None and (piece := os.pread(self._file, READ_BYTES, at + len(rest))):
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                end = at + len(line) + 1
                try:
                    yield _DECODER.decode(line), end
                except msgspec.DecodeError:
                    self._pass_over(at, end)
                at = end

    def _pass_over(self, at: int, end: int) -> None:
        logger.error("a line of the ledger's file cannot be read", extra={"path": str(self._path), "at": at})
        if at == self._at:
            self._at = end

    def _remove(self) -> None:
        if self._file is None:
            return
        with suppress(OSError):
            self._path.unlink()
        os.close(self._file)
        self._file = None
        self._at = 0


def _made(path: Path) -> int:
    """Make a file that is locked before others can find it by its name."""
    new = path.with_suffix(".new")
    file = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        new.rename(path)
    except BaseException:
        os.close(file)
        new.unlink(missing_ok=True)
        raise
    return file


def _locked(path: Path) -> FileJournal | None:
    """Take over a file that no process holds. One that another user made, or that a link leads to, is not ours."""
    try:
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # It may have been removed between the two: then it is nobody's.
        found = os.fstat(file)
        is_there = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and found.st_ino == path.stat().st_ino
    except OSError:
        is_there = False
    if not is_there:
        os.close(file)
        return None
    journal = FileJournal(path.parent, path.name.removesuffix(SUFFIX))
    journal._file = file  # noqa: SLF001 - one of ours
    return journal


def _merged(found: Iterable[tuple[Batch, int]], most: int, *, is_held: bool) -> _Oldest | None:
    """Put together what follows without a gap in the numbers: one tells the store that something is lost."""
    oldest: _Oldest | None = None
    for batch, end in found:
        if oldest is None:
            oldest = _Oldest(batch, end, is_held)
            continue
        before = oldest.batch
        length = len(before.entries)
        if batch.number != before.number + length or length + len(batch.entries) > most:
            break
        oldest = _Oldest(Batch(before.owner, before.number, [*before.entries, *batch.entries]), end, is_held)
    return oldest
