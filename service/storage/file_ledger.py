"""The ledger of processes without a shared store: files of records, one a line."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from service.domain.ledger import Batch
from service.domain.usage_record import CRASHED, UsageRecord
from service.errors import StoreUnavailable
from service.storage.append_file import AppendFile
from service.storage.ledger_places import Place, abandoned_places, record_files, take_place
from service.storage.usage_json import record_as_json, record_of_json

PAGE = 500
"""Records that are read before others have their turn."""
DRAFTS_BYTES = 1 << 16
"""Once this much of drafts is written and none is open, they are forgotten: not with each request."""


class FileLedgerStore:
    """Obeys :class:`service.engine.ledger_writer.LedgerStore` in a folder, where it has a place of its own.

    Drafts stand in a file of their own, by which the next process learns what the last one left unfinished. Whoever
    only reads takes no place.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: set[str] = set()
        self._left: dict[str, UsageRecord] = {}
        """Drafts of processes before this one."""
        self._files: _Files | None = None

    async def apply(self, batch: Batch) -> bool:
        """See :class:`service.engine.ledger_writer.LedgerStore`."""
        files = self._taken()
        drafts = [entry.record for entry in batch.entries if entry.kind in ("open", "amend")]
        records = [entry.record for entry in batch.entries if entry.kind not in ("open", "amend")]
        _append(files.drafts, drafts)
        _append(files.records, records)
        # Only now: of a batch that could not be written, nothing is to be forgotten.
        self._open.update(record.id for record in drafts)
        for record in records:
            self._open.discard(record.id)
            self._left.pop(record.id, None)
        if files.drafts.size > DRAFTS_BYTES and not self._open and not self._left:
            with suppress(OSError):  # then they are passed over for their records
                files.drafts.clear()
        return True

    def close(self) -> None:
        """Let another process write. Drafts that are open are left to it."""
        files, self._files = self._files, None
        if files is None:
            return
        if not self._left and not self._open:
            with suppress(OSError):
                files.place.drafts.unlink(missing_ok=True)
        files.close()

    async def beat(self, owner: str) -> None:
        """See :class:`service.engine.ledger_writer.LedgerStore`."""
        del owner

    async def abandoned(self) -> Sequence[UsageRecord]:
        """See :class:`service.engine.ledger_writer.LedgerStore`."""
        self._taken()
        return list(self._left.values())

    async def adopt(self, record: UsageRecord) -> bool:
        """See :class:`service.engine.ledger_writer.LedgerStore`."""
        files = self._taken()
        if record.id not in self._left:
            return False
        _append(files.records, [record])
        del self._left[record.id]
        return True

    async def read(self, since: float, until: float) -> AsyncIterator[UsageRecord]:
        """See :class:`service.engine.ledger_writer.LedgerStore`."""
        for number, record in enumerate(_records(self._folder)):
            if record.ended_at is not None and since <= record.ended_at < until:
                yield record
            if number % PAGE == PAGE - 1:
                await asyncio.sleep(0)

    async def complete_since(self, until: float) -> float:
        """See :class:`service.engine.ledger_writer.LedgerStore`. Nothing is taken from the files."""
        del until
        return 0.0

    def _taken(self) -> "_Files":
        """Take a place, with the first use; learn what processes that are gone left unfinished."""
        if self._files is None:
            place = take_place(self._folder)
            files = _Files(place, AppendFile(place.records), AppendFile(place.drafts))
            try:
                self._inherit(files)
            except BaseException:
                files.close()
                raise
            self._files = files
        return self._files

    def _inherit(self, files: "_Files") -> None:
        left = {record.id: record for record in _read(files.place.drafts)}
        for other in abandoned_places(self._folder):
            drafts = _read(other.drafts)
            _append(files.drafts, drafts)
            left.update((record.id, record) for record in drafts)
            with suppress(OSError):
                other.drafts.unlink(missing_ok=True)
        if left:
            for record in _records(self._folder):
                left.pop(record.id, None)
        self._left = left


@dataclass(frozen=True, slots=True)
class _Files:
    """Where one process writes."""

    place: Place
    records: AppendFile
    drafts: AppendFile

    def close(self) -> None:
        """Let them go."""
        self.drafts.close()
        self.records.close()
        self.place.release()


def _append(file: AppendFile, records: Sequence[UsageRecord]) -> None:
    if not records:
        return
    try:
        file.append(b"".join(record_as_json(record) + b"\n" for record in records))
    except OSError as error:
        raise StoreUnavailable(f"the ledger's file cannot be written ({type(error).__name__})") from error


def _read(path: Path) -> list[UsageRecord]:
    """Return the records of a file; a line that was not finished is none."""
    records: list[UsageRecord] = []
    try:
        with path.open("rb") as file:
            for line in file:
                with suppress(msgspec.DecodeError):
                    records.append(record_of_json(line))
    except FileNotFoundError:
        pass
    return records


def _records(folder: Path) -> list[UsageRecord]:
    """Return the records of all places, oldest first; the true one of what somebody else wrote as crashed."""
    found: dict[str, UsageRecord] = {}
    paths = record_files(folder)
    for path in paths:
        for record in _read(path):
            if record.outcome != CRASHED or record.id not in found:
                found[record.id] = record
    if len(paths) == 1:
        return list(found.values())
    return sorted(found.values(), key=lambda record: record.ended_at or 0)
