"""The ledger: one record for each generation, written before its answer ends, and never twice."""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, nullcontext

from msgspec.structs import replace

from service.accounting.prices import Price
from service.domain.clock import Clock
from service.domain.generation import EmbeddingRequest, GenerationRequest, Usage
from service.domain.ledger import Entry
from service.domain.names import plain_name
from service.domain.principal import RequestContext
from service.domain.usage_columns import token_columns
from service.domain.usage_record import CANCELLED, NOTHING, OK, UNKNOWN, CallRecord, UsageRecord
from service.engine.attempt import MAY_BE_BILLED, Attempt
from service.engine.catalogue import ModelEntry
from service.engine.content import Content
from service.engine.invoices import Invoices
from service.engine.ledger_writer import LedgerWriter
from service.errors import Fault, InternalError, ServiceError, UpstreamError, UpstreamMisconfigured
from service.queueing.work import Work
from service.telemetry.metrics import Metrics

logger = logging.getLogger("service.usage")

SETTLE_S = 30.0
"""How long the invoice is asked about a call; then the estimate stays."""
SETTLE_EVERY_S = 0.5


class OpenCall:
    """One call to a provider. Only its first end counts."""

    def __init__(self, account: "Account", call_id: str, attempt: Attempt) -> None:
        self.id = call_id
        self._account = account
        self._provider = attempt.route.provider
        self._model = attempt.route.model
        self._outcome = ""
        self._usage = UNKNOWN

    def ended(self, outcome: str, usage: Usage) -> None:
        """Note how it ended, and what it took."""
        if not self._outcome:
            self._outcome, self._usage = outcome, usage
            self._account.call_over()

    def first_content(self) -> None:
        """Take note that its first content has come."""
        self._account.first_content()

    def record(self, price: Price | None) -> CallRecord:
        """Say what is known of it."""
        cost = None if price is None else price.nano_usd(self._usage)
        return CallRecord(self.id, self._provider, self._model, self._outcome or CANCELLED, self._usage, cost)


class Account:
    """One generation while it runs."""

    def __init__(
        self,
        ledger: "Ledger",
        entry: ModelEntry,
        asked: GenerationRequest | EmbeddingRequest,
        context: RequestContext,
        *,
        streamed: bool,
    ) -> None:
        self._ledger = ledger
        self._clock = ledger.clock
        self._entry = entry
        self._context = context
        self._timings = context.timings
        self._calls: list[OpenCall] = []
        # As what the request was received at, which no test moves.
        self._began = time.monotonic()
        self._is_open = False
        self._is_closed = False
        self._kept: asyncio.Future[None] | None = None
        self.finish_reason: str | None = None
        self.content: Content | None = None
        """What the log is to have of it, if that is wanted."""
        if context.principal.log_content and isinstance(asked, GenerationRequest):
            self.content = Content(asked)
        self._draft = UsageRecord(
            id=secrets.token_hex(12),
            request_id=context.request_id,
            began_at=self._clock.wall(),
            principal=context.principal.name,
            model=entry.name,
            asked_model=plain_name(asked.model),
            providers=tuple(dict.fromkeys(route.provider for route in entry.routes)),
            user=None if asked.user_id is None else plain_name(asked.user_id),
            streamed=streamed,
            background=context.background,
            price=None if entry.price is None else entry.price.name,
            trace_id=context.trace_id,
        )

    async def open(self, work: Work) -> None:
        """Write the draft, with what the generation is taken for; from here on a provider may be asked."""
        self._draft = replace(self._draft, estimate=Usage(work.input_tokens, work.output_tokens, estimated=True))
        self._is_open = True
        await self._ledger.opened(self._draft)

    def first_content(self) -> None:
        """Take note that the first content of a stream has come."""
        if self._timings.first_content is None:
            self._timings.first_content = time.monotonic() - (self._context.received_at or self._began)

    @contextmanager
    def asking(self, attempt: Attempt) -> Iterator[OpenCall]:
        """Call a provider within the block. What it brings may still go on afterwards; what fails, is over."""
        call = OpenCall(self, f"{self._draft.id}-{len(self._calls) + 1}", attempt)
        self._calls.append(call)
        self._timings.call_begins(time.monotonic())
        try:
            yield call
        except asyncio.CancelledError:
            call.ended(CANCELLED, Usage(self._draft.estimate.input_tokens, 0, estimated=True))
            raise
        except ServiceError as error:
            call.ended(error.code, self._taken_by(error))
            raise
        except Exception:
            call.ended(InternalError.code, UNKNOWN)
            raise

    def _taken_by(self, error: ServiceError) -> Usage:
        if isinstance(error, MAY_BE_BILLED):
            return Usage(self._draft.estimate.input_tokens, 0, estimated=True)
        if not isinstance(error, UpstreamError) or isinstance(error, UpstreamMisconfigured):
            return NOTHING
        # Where the connection or the server failed, the provider may have read what it was sent.
        was_refused = error.upstream_status is not None and error.upstream_status < 500  # noqa: PLR2004
        return NOTHING if was_refused else UNKNOWN

    def call_over(self) -> None:
        """Take note that a call has ended."""
        self._timings.call_ends(time.monotonic())

    async def close(self, error: BaseException | None = None) -> None:
        """Write the record, once; return when it is kept."""
        if not self._is_closed:
            self._is_closed = True
            record = self._record(error)
            self._ledger.tell(record, self._context, self.content)
            self._kept = self._ledger.closed(record, self._entry.price, was_open=self._is_open)
        if self._is_open and self._kept is not None:
            # Whoever stops waiting here does not stop the writing.
            await asyncio.shield(self._kept)

    def _record(self, error: BaseException | None) -> UsageRecord:
        outcome, fault = _end(error)
        timings = self._timings
        now = time.monotonic()
        return replace(
            self._draft,
            ended_at=self._clock.wall(),
            outcome=outcome,
            fault=fault,
            finish_reason=self.finish_reason,
            calls=tuple(call.record(self._entry.price) for call in self._calls),
            total_s=now - (self._context.received_at or self._began),
            limits_s=timings.limits,
            queue_s=timings.queue,
            upstream_s=timings.upstream_until(now),
            first_content_s=timings.first_content,
        )


class Ledger:
    """Keeps an account of each generation of this process, and sees that its record is written."""

    def __init__(self, *, writer: LedgerWriter | None, invoices: Invoices, metrics: Metrics, clock: Clock) -> None:
        """Without a ``writer``, nothing is kept."""
        self.clock = clock
        self._writer = writer
        self._invoices = invoices
        self._metrics = metrics
        self._settling: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write within the block; at its end, what is still asked of an invoice is left to another process."""
        async with self._writer.running() if self._writer is not None else nullcontext():
            try:
                yield
            finally:
                for task in self._settling:
                    task.cancel()
                await asyncio.gather(*self._settling, return_exceptions=True)

    @asynccontextmanager
    async def account(
        self,
        entry: ModelEntry,
        asked: GenerationRequest | EmbeddingRequest,
        context: RequestContext,
        *,
        streamed: bool = False,
    ) -> AsyncIterator[Account]:
        """Keep the account of one generation, which is closed when the block is left, unless it was before."""
        account = Account(self, entry, asked, context, streamed=streamed)
        try:
            yield account
        except BaseException as error:
            await account.close(error)
            raise
        await account.close()

    async def opened(self, draft: UsageRecord) -> None:
        """Write a draft; return when it is kept."""
        if self._writer is not None:
            await asyncio.shield(self._writer.put(Entry("open", draft)))

    def closed(self, record: UsageRecord, price: Price | None, *, was_open: bool) -> asyncio.Future[None] | None:
        """Write a record; the future ends when it is kept. Where an invoice may know better, it is asked first."""
        writer = self._writer
        if writer is None:
            return None
        if not was_open:
            return writer.put(Entry("record", record))
        if not self._invoices.may_know(record):
            return writer.put(Entry("close", record))
        task = asyncio.get_running_loop().create_task(self._settle(writer, record, price), name=f"settle {record.id}")
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)
        return writer.put(Entry("amend", record))

    async def _settle(self, writer: LedgerWriter, record: UsageRecord, price: Price | None) -> None:
        # Cancelled at the end of the process, it is left to another one, which finds the draft.
        settled = await self._invoices.settled(record, price=price, within_s=SETTLE_S, every_s=SETTLE_EVERY_S)
        writer.put(Entry("close", settled))

    def tell(self, record: UsageRecord, context: RequestContext, content: Content | None = None) -> None:
        """Tell log and metrics of a record; the log has the ``content`` too."""
        fields = log_fields(record)
        if content is not None:
            fields = {**fields, **content.fields()}
        if context.line is None or not context.line.add(fields):
            logger.info("generation", extra={**context.log_fields, **fields})


def _end(error: BaseException | None) -> tuple[str, Fault]:
    """Say how a generation ended, and whose fault that is. A task that is cancelled was left by its caller."""
    match error:
        case None:
            return OK, "none"
        case ServiceError():
            return error.code, error.fault
        case Exception():
            return InternalError.code, "us"
        case _:
            return CANCELLED, "caller"


def log_fields(record: UsageRecord) -> Mapping[str, object]:
    """Return what the log tells of a generation: no text of its caller but names that are short."""
    cost = record.cost_usd
    fields: dict[str, object] = {
        "generation_id": record.id,
        "principal": record.principal,
        "user": record.user,
        "model": record.model,
        "provider": record.provider,
        "generation_outcome": record.outcome,
        "fault": record.fault,
        "finish_reason": record.finish_reason,
        "calls": len(record.calls),
        **token_columns(record.usage),
        "cost_usd": None if cost is None else f"{cost:f}",
        "limits_ms": _ms(record.limits_s),
        "queue_ms": _ms(record.queue_s),
        "upstream_ms": _ms(record.upstream_s),
        "first_content_ms": None if record.first_content_s is None else _ms(record.first_content_s),
    }
    return {name: value for name, value in fields.items() if value is not None}


def _ms(seconds: float) -> float:
    return round(seconds * 1_000, 2)
