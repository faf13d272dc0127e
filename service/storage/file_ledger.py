"""The ledger of one process without a shared store: a file of records, one a line."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from service.domain.ledger import Batch
from service.domain.usage_record import UsageRecord
from service.errors import StoreUnavailable
from service.storage.usage_json import record_as_json, record_of_json

PAGE = 500
"""Records that are read before others have their turn."""
NAME = "usage.jsonl"
DRAFTS = "drafts.jsonl"


class FileLedgerStore:
    """Obeys :class:`service.engine.ledger_writer.LedgerStore` in a folder that one process at a time writes to.

    Drafts stand in a file of their own, by which the next process learns what the last one left unfinished.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._records = folder / NAME
        self._drafts = folder / DRAFTS
        self._open: dict[str, UsageRecord] = {}
        self._left: dict[str, UsageRecord] | None = None

    async def apply(self, batch: Batch) -> bool:
        """See :class:`service.engine.ledger_writer.LedgerStore`."""
        drafts: list[bytes] = []
        records: list[bytes] = []
        left = self._left_over()
        for entry in batch.entries:
            if entry.kind in ("open", "amend"):
                self._open[entry.record.id] = entry.record
                drafts.append(record_as_json(entry.record) + b"\n")
            else:
                self._open.pop(entry.record.id, None)
                left.pop(entry.record.id, None)
                records.append(record_as_json(entry.record) + b"\n")
        self._append(self._drafts, drafts)
        self._append(self._records, records)
        if not self._open and not left:
            with suppress(OSError):
                self._drafts.unlink(missing_ok=True)
        return True

    async def beat(self, owner: str) -> None:
        """See :class:`service.engine.ledger_writer.LedgerStore`."""
        del owner

    async def abandoned(self) -> Sequence[UsageRecord]:
        """See :class:`service.engine.ledger_writer.LedgerStore`."""
        return list(self._left_over().values())

    async def adopt(self, record: UsageRecord) -> bool:
        """See :class:`service.engine.ledger_writer.LedgerStore`."""
        if self._left_over().pop(record.id, None) is None:
            return False
        self._append(self._records, [record_as_json(record) + b"\n"])
        return True

    async def read(self, since: float, until: float) -> AsyncIterator[UsageRecord]:
        """See :class:`service.engine.ledger_writer.LedgerStore`."""
        # Of one that was taken for crashed and had an end that came late, the later line holds.
        for number, record in enumerate({record.id: record for record in _read(self._records)}.values()):
            if record.ended_at is not None and since <= record.ended_at < until:
                yield record
            if number % PAGE == PAGE - 1:
                await asyncio.sleep(0)

    def _left_over(self) -> dict[str, UsageRecord]:
        """Return the drafts that a process before this one left, but for those of which there is a record."""
        if self._left is None:
            drafts = {record.id: record for record in _read(self._drafts)}
            if drafts:
                for record in _read(self._records):
                    drafts.pop(record.id, None)
            self._left = drafts
        return self._left

    def _append(self, path: Path, lines: Sequence[bytes]) -> None:
        if not lines:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                os.write(file, b"".join(lines))
            finally:
                os.close(file)
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
