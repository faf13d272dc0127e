"""Places in the ledger's folder: of several processes without a shared store, each writes to files of its own."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from service.errors import StoreUnavailable

PLACES_MAX = 16
"""Processes that may write to one folder at a time; more are a mistake."""


@dataclass(frozen=True, slots=True)
class Place:
    """Files that nobody else writes to, as long as the lock is held."""

    records: Path
    drafts: Path
    lock: int
    """A file descriptor; its lock ends with the process at the latest."""

    def release(self) -> None:
        """Let another process have it."""
        os.close(self.lock)


def take_place(folder: Path) -> Place:
    """Take the first place that is free. Raises ``StoreUnavailable``."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for number in range(1, PLACES_MAX + 1):
            if (place := _locked(folder, number)) is not None:
                return place
    except OSError as error:
        raise StoreUnavailable(f"the ledger's folder cannot be written to ({type(error).__name__})") from error
    raise StoreUnavailable(
        f"{PLACES_MAX} processes write to the ledger's folder {folder}; set usage.dir to another one for some of them"
    )


def abandoned_places(folder: Path) -> Iterator[Place]:
    """Take, one after the other, the places in which a process that is gone left drafts."""
    for number in range(1, PLACES_MAX + 1):
        if not (folder / _name("drafts", number)).exists():
            continue
        with suppress(OSError):
            if (place := _locked(folder, number)) is not None:
                try:
                    yield place
                finally:
                    place.release()


def record_files(folder: Path) -> list[Path]:
    """Return the files of records of all places."""
    paths = (folder / _name("usage", number) for number in range(1, PLACES_MAX + 1))
    return [path for path in paths if path.exists()]


def _locked(folder: Path, number: int) -> Place | None:
    lock = os.open(folder / f".place-{number}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    except BaseException:
        os.close(lock)
        raise
    return Place(folder / _name("usage", number), folder / _name("drafts", number), lock)


def _name(kind: str, number: int) -> str:
    return f"{kind}.jsonl" if number == 1 else f"{kind}.{number}.jsonl"
