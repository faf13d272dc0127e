"""The ledger of one process without a shared store: a file of records, one a line."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from service.domain.ledger import Batch
from service.domain.usage_record import UsageRecord
from service.errors import StoreUnavailable
from service.storage.append_file import AppendFile
from service.storage.usage_json import record_as_json, record_of_json

PAGE = 500
"""Records that are read before others have their turn."""
NAME = "usage.jsonl"
DRAFTS = "drafts.jsonl"
DRAFTS_BYTES = 1 << 16
"""Once this much of drafts is written and none is open, they are forgotten: not with each request."""


class FileLedgerStore:
    """Obeys :class:`service.engine.ledger_writer.LedgerStore` in a folder that one process at a time writes to.

    Drafts stand in a file of their own, by which the next process learns what the last one left unfinished.
    """

    def __init__(self, folder: Path) -> None:
        self._records = folder / NAME
        self._drafts = folder / DRAFTS
        self._records_file = AppendFile(self._records)
        self._drafts_file = AppendFile(self._drafts)
        self._open: set[str] = set()
        self._left: dict[str, UsageRecord] | None = None

    async def apply(self, batch: Batch) -> bool:
        """See :class:`service.engine.ledger_writer.LedgerStore`."""
        left = self._left_over()
        drafts = [entry.record for entry in batch.entries if entry.kind in ("open", "amend")]
        records = [entry.record for entry in batch.entries if entry.kind not in ("open", "amend")]
        _append(self._drafts_file, drafts)
        _append(self._records_file, records)
        # Only now: of a batch that could not be written, nothing is to be forgotten.
        self._open.update(record.id for record in drafts)
        for record in records:
            self._open.discard(record.id)
            left.pop(record.id, None)
        if self._drafts_file.size > DRAFTS_BYTES and not self._open and not left:
            with suppress(OSError):  # then they are passed over for their records
                self._drafts_file.clear()
        return True

    def close(self) -> None:
        """Let another process write. Drafts that are open are left to it."""
        self._drafts_file.close()
        self._records_file.close()
        if self._left is not None and not self._left and not self._open:
            with suppress(OSError):
                self._drafts.unlink(missing_ok=True)

    async def beat(self, owner: str) -> None:
        """See :class:`service.engine.ledger_writer.LedgerStore`."""
        del owner

    async def abandoned(self) -> Sequence[UsageRecord]:
        """See :class:`service.engine.ledger_writer.LedgerStore`."""
        return list(self._left_over().values())

    async def adopt(self, record: UsageRecord) -> bool:
        """See :class:`service.engine.ledger_writer.LedgerStore`."""
        left = self._left_over()
        if record.id not in left:
            return False
        _append(self._records_file, [record])
        del left[record.id]
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
