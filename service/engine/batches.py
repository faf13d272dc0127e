"""Batches: taking files of requests, and telling what came of them; a port keeps both, and workers do the lines."""

import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import msgspec

from service.domain.batch import Batch, BatchFile, BatchStatus, LineResult, file_not_found
from service.domain.idempotency import IdempotencyKey, other_body
from service.domain.principal import Principal, RequestContext
from service.engine.generation import GenerationService
from service.engine.job_span import accepted
from service.engine.jobs import KEYED_DIGITS, JobNews, JobRoute, once_more
from service.errors import FieldError, InvalidRequest, NotFound, StoreUnavailable
from service.telemetry import semconv

LINES_MAX = 50_000
LINE_BYTES_MAX = 1_048_576
CUSTOM_ID_MAX = 512
FAULTS_MAX = 20
"""Lines that are named before the rest of a file is not looked at any more."""
CHUNK = 500
"""Lines that go to the store, or come from it, at a time."""
CHUNK_BYTES = 1_048_576
"""Of lines that go to the store at a time, but for the last of them."""
WINDOW_S = 86_400.0
BATCH_PREFIX, FILE_PREFIX = "batch_", "file_"


class BatchStore(Protocol):
    """Where files, batches and results are. Every method raises ``StoreUnavailable`` where it does not answer."""

    async def add_lines(self, file_id: str, first: int, lines: Sequence[bytes]) -> None:
        """Keep lines of a file that is being uploaded, the first of them with this number."""
        ...

    async def keep_file(self, file: BatchFile) -> BatchFile:
        """Keep a file whose lines are all there; return it with its times."""
        ...

    async def drop_file(self, file_id: str) -> None:
        """Forget a file."""
        ...

    async def file(self, file_id: str) -> BatchFile | None:
        """Return a file, or None."""
        ...

    async def lines(self, file_id: str, first: int, count: int) -> Sequence[bytes]:
        """Return lines of a file, from this number on."""
        ...

    async def begin(self, batch: Batch) -> Batch:
        """Queue a batch, once however often it is begun; return it as it stands.

        Its file and all its lines stay until it is over. Raises ``NotFound`` where one of them is gone, ``RateLimited``
        when its principal has too many open ones, ``Overloaded``, and ``IdempotencyMismatch`` where another has its id.
        """
        ...

    async def batch(self, batch_id: str) -> Batch | None:
        """Return a batch as it stands, or None."""
        ...

    async def cancel(self, batch_id: str) -> Batch | None:
        """End a batch that is not over; what was done stays."""
        ...

    async def of(self, principal: str) -> Sequence[Batch]:
        """Return the batches of a principal that are still known, the newest first."""
        ...

    async def results(self, batch: Batch, first: int, count: int) -> Sequence[LineResult]:
        """Return what came of the lines from this number on: of all of them, once the batch is over."""
        ...


class BatchService:
    """What callers can do with files and batches. Both belong to the principal that sent them."""

    def __init__(
        self,
        *,
        store: BatchStore | None,
        routes: Mapping[str, JobRoute],
        generation: GenerationService,
        news: JobNews,
    ) -> None:
        """Without a ``store``, every call raises ``StoreUnavailable``."""
        self._given = store
        self._routes = routes
        self._generation = generation
        self._news = news

    @property
    def store(self) -> BatchStore:
        """Return where all of it is."""
        if self._given is None:
            raise StoreUnavailable("batches need a store that outlives this process: set redis.url")
        return self._given

    async def upload(
        self, filename: Callable[[], str], lines: AsyncIterator[bytes], context: RequestContext
    ) -> BatchFile:
        """Take a file, line by line; nothing of it is kept if any line is wrong. Its name is asked for at the end.

        Raises ``InvalidRequest`` that names the lines, ``StoreUnavailable``, and whatever ``lines`` does.
        """
        file_id = FILE_PREFIX + secrets.token_hex(16)
        checked = _Lines(self._routes)
        waiting: list[bytes] = []
        waiting_bytes = 0
        try:
            async for line in lines:
                if checked.add(line):
                    waiting.append(line)
                    waiting_bytes += len(line)
                if len(waiting) >= CHUNK or waiting_bytes >= CHUNK_BYTES:
                    await self.store.add_lines(file_id, checked.count - len(waiting) + 1, waiting)
                    waiting, waiting_bytes = [], 0
            checked.raise_faults()
            if waiting:
                await self.store.add_lines(file_id, checked.count - len(waiting) + 1, waiting)
            return await self.store.keep_file(
                BatchFile(file_id, context.principal.name, filename(), checked.size_bytes, checked.count, 0.0)
            )
        except BaseException:
            await self.store.drop_file(file_id)
            raise

    async def file(self, file_id: str, principal: Principal) -> BatchFile:
        """Return a file of the principal's; raise ``NotFound``, for someone else's too."""
        found = await self.store.file(file_id)
        if found is None or found.principal != principal.name:
            raise file_not_found(file_id)
        return found

    async def drop_file(self, file_id: str, principal: Principal) -> None:
        """Forget a file of the principal's; raise ``NotFound``. A batch that runs has what it needs all the same."""
        await self.store.drop_file((await self.file(file_id, principal)).id)

    async def begin(
        self,
        file_id: str,
        endpoint: str,
        context: RequestContext,
        *,
        metadata: Mapping[str, str],
        key: IdempotencyKey | None = None,
    ) -> Batch:
        """Begin a batch with a file of the principal's, once for each ``key``.

        Raises ``NotFound``, ``InvalidRequest``, ``IdempotencyMismatch``, ``RateLimited`` or ``Overloaded``.
        """
        batch_id = BATCH_PREFIX + (secrets.token_hex(16) if key is None else key.digest[:KEYED_DIGITS])
        known = None if key is None else await self.store.batch(batch_id)
        if key is not None and known is not None:
            if known.fingerprint != key.fingerprint:
                raise other_body()
            return known
        file = await self.file(file_id, context.principal)
        (first,) = await self.store.lines(file.id, 1, 1)
        if not first:
            raise file_not_found(file_id)
        if _read(first).url != endpoint:
            raise InvalidRequest.at("endpoint", f"the file's lines ask for another one than {endpoint!r}")
        batch = Batch(
            id=batch_id,
            principal=context.principal.name,
            endpoint=endpoint,
            file_id=file.id,
            window_s=WINDOW_S,
            weight=context.principal.weight,
            metadata=metadata,
            fingerprint="" if key is None else key.fingerprint,
            total=file.lines,
        )
        with accepted(context, semconv.BATCHES, batch.id) as traceparent:
            traced = replace(batch, traceparent=traceparent)
            begun = await once_more(lambda: self.store.begin(traced))
        self._news.submitted.set()
        return begun

    async def batch(self, batch_id: str, principal: Principal) -> Batch:
        """Return a batch of the principal's; raise ``NotFound``, for someone else's too."""
        return _owned(batch_id, await self.store.batch(batch_id), principal)

    async def cancel(self, batch_id: str, principal: Principal) -> Batch:
        """End a batch of the principal's; one that is over stays as it is. Raise ``NotFound``."""
        await self.batch(batch_id, principal)
        cancelled = _owned(batch_id, await self.store.cancel(batch_id), principal)
        self._news.cancelled.set()
        return cancelled

    async def of(self, principal: Principal) -> Sequence[Batch]:
        """Return the principal's batches, the newest first."""
        return await self.store.of(principal.name)

    async def lines(self, file: BatchFile) -> AsyncIterator[bytes]:
        """Give the lines of a file."""
        for first in range(1, file.lines + 1, CHUNK):
            for line in await self.store.lines(file.id, first, min(CHUNK, file.lines + 1 - first)):
                yield line

    async def results(self, batch: Batch) -> AsyncIterator[LineResult]:
        """Give what came of each line, in the order of the file."""
        for first in range(1, batch.total + 1, CHUNK):
            for result in await self.store.results(batch, first, min(CHUNK, batch.total + 1 - first)):
                yield result


def _owned(batch_id: str, batch: Batch | None, principal: Principal) -> Batch:
    if batch is None or batch.principal != principal.name:
        raise NotFound(f"there is no batch {batch_id!r}")
    return batch


def is_over(batch: Batch) -> bool:
    """Whether a batch will not change any more."""
    return batch.status is not BatchStatus.IN_PROGRESS


class _Lines:
    """Checks the lines of a file as they come."""

    def __init__(self, routes: Mapping[str, JobRoute]) -> None:
        self.count = 0
        self.size_bytes = 0
        self._routes = routes
        self._endpoint: str | None = None
        self._empty = 0
        self._ids: set[int] = set()
        """Their hashes, of 64 bits: the ids themselves could have 25 MiB."""
        self._faults: list[FieldError] = []

    def add(self, line: bytes) -> bool:
        """Count a line, unless it is empty; raise ``InvalidRequest`` once too many are wrong."""
        self.size_bytes += len(line) + 1
        if not line.strip():
            self._empty += 1
            if self._empty > LINES_MAX:
                raise InvalidRequest.at("file", f"has more than {LINES_MAX} empty lines")
            return False
        self.count += 1
        if self.count > LINES_MAX:
            raise InvalidRequest.at("file", f"has more than {LINES_MAX} lines")
        fault = self._fault(line)
        if fault is not None:
            self._faults.append(FieldError(f"file.{self.count}", fault))
            if len(self._faults) >= FAULTS_MAX:
                self.raise_faults()
        return True

    def raise_faults(self) -> None:
        """Raise ``InvalidRequest`` if any line was wrong, or there was none."""
        if self._faults:
            first = self._faults[0]
            raise InvalidRequest(f"{first.field}: {first.message}", fields=tuple(self._faults))
        if not self.count:
            raise InvalidRequest.at("file", "has no lines")

    def _fault(self, line: bytes) -> str | None:
        try:
            read = _read(line)
        except msgspec.ValidationError:
            return "must be a JSON object"
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return f"not JSON: {error}"
        except RecursionError:
            return "is nested too deeply"
        custom_id = read.custom_id
        if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= CUSTOM_ID_MAX:
            return f"custom_id: takes 1 to {CUSTOM_ID_MAX} characters, different on each line"
        if hash(custom_id) in self._ids:
            return f"custom_id: {custom_id!r} stands on an earlier line too"
        self._ids.add(hash(custom_id))
        return self._request_fault(read)

    def _request_fault(self, line: "_Line") -> str | None:
        if line.method != "POST":
            return "method: takes 'POST'"
        if not isinstance(line.url, str) or line.url not in self._routes:
            return f"url: takes {' or '.join(map(repr, self._routes))}"
        self._endpoint = self._endpoint or line.url
        if line.url != self._endpoint:
            return f"url: takes {self._endpoint!r}, as the lines before"
        if not bytes(line.body).startswith(b"{"):
            return "body: must be a JSON object"
        try:
            self._routes[line.url].read(bytes(line.body))
        except InvalidRequest as error:
            return error.message if error.message.startswith("body: ") else f"body.{error.message}"
        return None


class _Line(msgspec.Struct):
    """What stands on a line; its body as it was written, which whoever works on it reads."""

    custom_id: Any = None
    method: Any = None
    url: Any = None
    body: msgspec.Raw = msgspec.Raw()


def _read(line: bytes) -> _Line:
    """Read a line as the store does when it becomes a job; see ``msgspec.json.decode`` for what it raises."""
    return msgspec.json.decode(line, type=_Line)
