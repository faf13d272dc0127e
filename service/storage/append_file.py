"""A file of lines that one process appends to."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

CHECK_S = 1.0
"""How often it is looked whether the file was taken away, as those do who rotate files."""


class AppendFile:
    """Keeps a file open; what is appended is there as a whole, or not at all. All of it raises ``OSError``.

    Not synced: it outlives a process that is killed, and not a machine that loses power.
    """

    def __init__(self, path: Path, *, now: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._now = now
        self._file: int | None = None
        self._size = 0
        self._checked_at = 0.0

    @property
    def size(self) -> int:
        """How many bytes are in it, for all that this process knows."""
        return self._size

    def append(self, lines: bytes) -> None:
        """Write whole lines behind what is there."""
        file = self._opened()
        written = 0
        try:
            while written < len(lines):
                written += _write(file, lines[written:])
        except OSError:
            with suppress(OSError):
                os.ftruncate(file, os.fstat(file).st_size - written)
            raise
        self._size += written

    def clear(self) -> None:
        """Forget all that is in it."""
        os.ftruncate(self._opened(), 0)
        self._size = 0

    def close(self) -> None:
        """Let it go; the next line opens it again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _opened(self) -> int:
        now = self._now()
        if self._file is not None and now - self._checked_at >= CHECK_S and not self._is_there(self._file):
            self.close()
        if self._file is None:
            self._file = _open(self._path)
            self._size = _end_line(self._file)
            self._checked_at = now
        return self._file

    def _is_there(self, file: int) -> bool:
        self._checked_at = self._now()
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(file))  # noqa: PTH116 - on the way of each record
        except FileNotFoundError:
            return False


def _open(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # No link: in a folder for temporary files somebody else may have laid one.
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _end_line(file: int) -> int:
    """End a line that a process died in, so that it spoils none of ours; return the size."""
    size = os.fstat(file).st_size
    if size and os.pread(file, 1, size - 1) != b"\n":
        size += os.write(file, b"\n")
    return size


def _write(file: int, data: bytes) -> int:
    return os.write(file, data)
