"""Where a process keeps what it could not write to the ledger yet: a file that outlives it."""

import fcntl
import logging
import os
from collections import deque
from contextlib import suppress
from pathlib import Path

import msgspec

from service.domain.ledger import Batch

logger = logging.getLogger(__name__)

SUFFIX = ".journal"

_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Batch)


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
        self._first: tuple[Batch, int] | None = None
        self._inherited: FileJournal | None = None

    def append(self, batch: Batch) -> None:
        """See :class:`service.engine.ledger_writer.Journal`."""
        if self._held:
            self._held.append(batch)
            return
        line = _ENCODER.encode(batch) + b"\n"
        try:
            if self._file is None:
                self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
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

    def first(self) -> Batch | None:
        """See :class:`service.engine.ledger_writer.Journal`."""
        if self._first is None and self._file is not None:
            self._first = self._read()
        if self._first is not None:
            return self._first[0]
        return self._held[0] if self._held else None

    def drop_first(self) -> None:
        """See :class:`service.engine.ledger_writer.Journal`."""
        if self._first is None:
            self._held.popleft()
            return
        self._at = self._first[1]
        self._first = None
        if self._file is not None and self._at >= os.fstat(self._file).st_size:
            self._remove()

    def left_behind(self) -> "FileJournal | None":
        """See :class:`service.engine.ledger_writer.Journal`."""
        if self._inherited is not None and self._inherited.first() is not None:
            return self._inherited
        self._inherited = None
        with suppress(OSError):
            for path in sorted(self._folder.glob(f"*{SUFFIX}")):
                if path != self._path and (found := _locked(path)) is not None:
                    if found.first() is None:
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

    def _read(self) -> tuple[Batch, int] | None:
        """Return the batch at the present place and where it ends; a line that was not finished is none."""
        if self._file is None:
            return None
        line = b""
        at = self._at
        while not line.endswith(b"\n"):
            piece = os.pread(self._file, 1 << 16, at + len(line))
            if not piece:
                return None
            newline = piece.find(b"\n")
            line += piece if newline < 0 else piece[: newline + 1]
        try:
            return _DECODER.decode(line), at + len(line)
        except msgspec.DecodeError:
            logger.exception("a line of the ledger's file cannot be read", extra={"path": str(self._path), "at": at})
            self._at = at + len(line)
            return self._read()

    def _remove(self) -> None:
        if self._file is None:
            return
        with suppress(OSError):
            self._path.unlink()
        os.close(self._file)
        self._file = None
        self._at = 0


def _locked(path: Path) -> FileJournal | None:
    """Take over a file that no process holds."""
    try:
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # It may have been removed between the two: then it is nobody's.
        is_there = os.fstat(file).st_ino == path.stat().st_ino
    except OSError:
        is_there = False
    if not is_there:
        os.close(file)
        return None
    journal = FileJournal(path.parent, path.name.removesuffix(SUFFIX))
    journal._file = file  # noqa: SLF001 - one of ours
    return journal
