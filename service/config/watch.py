"""Noticing that a file has changed, and that whoever writes it is done; reads nothing of it."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

SETTLED_S = 0.5
"""A file that was not written to for so long is whole. Editors, ``cp`` and ``tee`` empty it first and then write it: in
between, it lacks the keys behind the cut."""


class Version(NamedTuple):
    """What changes when a file is written, or replaced as Kubernetes does: by moving a symbolic link."""

    modified_ns: int
    inode: int
    size_bytes: int


def version_of(path: str | Path) -> Version:
    """Return the version of a file as it stands; raise ``OSError``. It costs a stat."""
    status = os.stat(path)  # noqa: PTH116 - on the hot path of keys, which needs no Path
    return Version(status.st_mtime_ns, status.st_ino, status.st_size)


class Watch:
    """Tells a version of a file that is whole from the one that was taken last; each look costs a stat."""

    def __init__(self, path: str | Path, *, wall: Callable[[], float] = time.time) -> None:
        """``wall`` is the time of day, on the scale of files' times."""
        self._path = path
        self._wall = wall
        self._taken: Version | None = None
        self._seen: Version | None = None

    def take(self) -> None:
        """Take the file as it stands for known; to be called before it is read, so that no later change is missed."""
        self._taken = self._seen = self.look()

    def is_taken(self) -> bool:
        """Whether the file is the one that was taken: after reading it, whether nobody wrote meanwhile."""
        return self.look() == self._taken

    def is_settled(self) -> bool:
        """Whether the file that was taken is whole by its age, and still there."""
        return self.is_taken() and self._taken is not None and self._age_s(self._taken) >= SETTLED_S

    def has_settled_change(self) -> bool:
        """Whether the file is another one than the one taken, and whole.

        That is where it was not written to of late, or is still what it was at the last look, for which some time has
        to pass between two. A file that is gone is another one too.
        """
        version = self.look()
        if version == self._taken:
            return False
        is_settled = version == self._seen or (version is not None and self._age_s(version) >= SETTLED_S)
        self._seen = version
        return is_settled

    def look(self) -> Version | None:
        """Return the version of the file as it stands; None if there is none."""
        try:
            return version_of(self._path)
        except OSError:
            return None

    def _age_s(self, version: Version) -> float:
        return self._wall() - version.modified_ns / 1e9
