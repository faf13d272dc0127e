"""Every fault of the simulator, on every route, met by real clients: each ends in a true completion or a typed error.

All cases run at once, and the tests below look at what came. A table of it is printed at the end of the run.
"""

import asyncio
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest

from service.errors import ServiceError
from service.simulator.directives import FAULTS, Directives, parse
from tests.support.clients import Client, Ending, Outcome, Question, open_clients
from tests.support.leaks import CAN_BE_MEASURED, KEY, WatchedService, watched_service
from tests.support.live import simulating
from tests.support.redis_server import eventually
from tests.support.upstream import Answer, scripted_upstream
from tests.support.wire import anthropic_event, anthropic_stream, openai_stream

pytestmark = [
    pytest.mark.skipif(not CAN_BE_MEASURED, reason="looks into /proc"),
    pytest.mark.timeout(300),
]

TEXT = "Zürich: 14 °C,\n naïve 🙂 in the third part."
TIMEOUTS_S = {"connect": 1.0, "first_token": 1.5, "between_tokens": 1.5, "total": 4.0}
HEADERS_AFTER_S = 0.5
MOST_S = 8.0
"""What the service may take for any case: its longest time-out, and as much again."""
WORKING_AT_ONCE = 32
"""More would make a slow machine look like a slow provider."""
WAITING_AT_ONCE = 64
UPSTREAMS = {"openai": "sim", "anthropic": "claude-sim"}
"""For each dialect, the name of a model that is served in it."""

OK = "complete"
REJECTED, MISCONFIGURED, THROTTLED = "upstream_rejected", "upstream_misconfigured", "upstream_throttled"
OVERLOADED = "upstream_overloaded"
UNAVAILABLE, INVALID, TIMEOUT = "upstream_unavailable", "upstream_invalid_response", "upstream_timeout"

Coming = str | Mapping[str, str]
"""``OK`` or an error's code; by dialect where they differ."""

REPORTED: Mapping[str, str] = {"openai": UNAVAILABLE, "anthropic": OVERLOADED}
"""What the vendors' error events of the simulator mean: OpenAI's says ``server_error``, the other ``overloaded``."""
ALL = 1_000
"""More tokens than there are: the text is whole when the fault comes, and the finish reason is not there."""
PAST_THE_END = 1_000_000
NEAR_THE_END = "9999"
"""Stands for a place in the last event, behind the finish reason, which each dialect has elsewhere: a place of as many
digits, for the model's name stands in each event."""
BYTES_FROM_THE_END = 10
"""Where that is: both last events are longer."""


@dataclass(frozen=True, slots=True)
class Row:
    """What the provider does, and what has to come of it."""

    directives: str
    streamed: Coming
    whole: Coming
    """The same for the plain routes."""
    after_content: bool = False
    """Whether content surely reaches the client before a stream fails."""
    short: bool = False
    """Whether fewer tokens are asked for than the answer has."""

    def coming(self, client: Client, dialect: str) -> str:
        """Return what has to come for one client."""
        coming = self.whole if client.form == "whole" else self.streamed
        return coming if isinstance(coming, str) else coming[dialect]

    @property
    def waits(self) -> bool:
        """Whether its cases do nothing for the most of their time."""
        return TIMEOUT in (self.streamed, self.whole)


def _paces() -> Iterator[Row]:
    yield Row("", OK, OK)
    yield Row("tokens=400", OK, OK, short=True)
    yield Row("chunk_bytes=7", OK, OK)
    yield Row("ttft_ms=300;gap_ms=5;jitter=1", OK, OK)
    yield Row("early_headers=1;ttft_ms=300", OK, OK)
    yield Row("ttft_ms=2500", TIMEOUT, OK)
    yield Row("early_headers=1;ttft_ms=2500", TIMEOUT, OK)
    yield Row("gap_ms=2500", TIMEOUT, TIMEOUT, after_content=True)


def _refusals() -> Iterator[Row]:
    for status in ("401", "403", "404", "quota"):
        yield Row(f"fault={status}", MISCONFIGURED, MISCONFIGURED)
    for status in ("429", "429;retry_after_s=-1"):
        yield Row(f"fault={status}", THROTTLED, THROTTLED)
    # OpenAI's overload is a slow_down, which is about us; the other's is about everybody.
    busy = {"openai": THROTTLED, "anthropic": OVERLOADED}
    yield Row("fault=529", busy, busy)
    for status in ("500", "503"):
        yield Row(f"fault={status}", UNAVAILABLE, UNAVAILABLE)
    yield Row("fault=400", REJECTED, REJECTED)


def _bodies() -> Iterator[Row]:
    # Anthropic's stream has usage in its first event: one without is no stream of that vendor's.
    yield Row("fault=no_usage", {"openai": OK, "anthropic": INVALID}, OK)
    yield Row("fault=empty", INVALID, INVALID)
    for fault in ("eof", "malformed", "wrong_schema", "error_in_200"):
        code = REPORTED if fault == "error_in_200" else INVALID
        yield Row(f"fault={fault};after_chunks=0", code, code)
        yield Row(f"fault={fault}", code, code, after_content=True)
        yield Row(f"fault={fault};after_chunks={ALL}", code, code, after_content=True)


def _wires() -> Iterator[Row]:
    for fault in ("reset", "cut"):
        for place in (
            "",
            ";after_chunks=0",
            ";after_chunks=3",
            ";after_chunks=3;gap_ms=30",
            f";after_chunks={ALL};gap_ms=5",
            ";after_bytes=0",
            ";after_bytes=120",
        ):
            # Before the head of the answer nothing was done for us; what breaks off after it may have to be paid for.
            code = UNAVAILABLE if (fault, place) == ("reset", "") else INVALID
            yield Row(f"fault={fault}{place}", code, code)
        yield Row(f"fault={fault};after_bytes=1500;gap_ms=20", INVALID, OK)
    # No reset there: it takes back what was written before it, and that may be the finish reason.
    yield Row(f"fault=cut;after_bytes={NEAR_THE_END};gap_ms=20", OK, OK)
    yield Row(f"fault=cut;after_bytes={PAST_THE_END}", OK, OK)
    yield Row("fault=stall", TIMEOUT, TIMEOUT)
    yield Row("fault=stall;after_chunks=0", TIMEOUT, TIMEOUT)
    yield Row("fault=stall;after_chunks=3", TIMEOUT, TIMEOUT, after_content=True)
    yield Row(f"fault=stall;after_chunks={ALL}", TIMEOUT, TIMEOUT, after_content=True)
    yield Row("fault=stall;after_bytes=50", TIMEOUT, TIMEOUT)
    yield Row(f"fault=stall;after_bytes={NEAR_THE_END}", OK, OK)
    yield Row("fault=stall;stall_ms=200", OK, OK)
    yield Row("fault=stall;stall_ms=200;after_chunks=3", OK, OK)
    yield Row("fault=slow_headers;header_gap_ms=40", TIMEOUT, TIMEOUT)
    yield Row("fault=slow_headers;header_gap_ms=1", OK, OK)


ROWS = (*_paces(), *_refusals(), *_bodies(), *_wires())
NO_FAULTS_OF_THEIR_OWN = {"prefill_us", "piece_chars", "cached_tokens", "times", "every", "share", "key"}
"""Directives that say which call is befallen, or what an answer counts."""


def _label(row: Row) -> str:
    return row.directives.replace(NEAR_THE_END, "(near the end)") or "(nothing)"


@dataclass(frozen=True, slots=True)
class Matrix:
    """What came of all cases."""

    clients: tuple[Client, ...]
    short_texts: Mapping[str, str]
    """By dialect, what the model says where few tokens are asked for."""
    outcomes: Mapping[tuple[str, str, str], Outcome]
    """By directives, dialect and the client's name."""
    service: WatchedService
    simulator: str

    def wrongs(self, row: Row) -> list[str]:
        """Return all that is not as it has to be."""
        return [
            f"{client.name} over {dialect}: {wrong}\n    {self.outcomes[row.directives, dialect, client.name]}"
            for client, dialect in itertools.product(self.clients, UPSTREAMS)
            for wrong in self.wrongs_of(row, client, dialect)
        ]

    def wrongs_of(self, row: Row, client: Client, dialect: str) -> Iterator[str]:
        """Look at one case."""
        outcome = self.outcomes[row.directives, dialect, client.name]
        text = self.short_texts[dialect] if row.short else TEXT
        return wrongs_of(row, client, outcome, text, row.coming(client, dialect))


def wrongs_of(row: Row, client: Client, outcome: Outcome, text: str, coming: str) -> Iterator[str]:
    """Tell all that is not as it has to be with one case; ``text`` is the model's."""
    if len(outcome.request_ids) != 1 or None in outcome.request_ids:
        yield "it has not one request id"
    if outcome.ending is Ending.COMPLETE:
        if coming != OK:
            yield f"a false success instead of {coming}"
        if outcome.text != text or outcome.finish_reason != _finish_reason(row, client):
            yield "it claims to be whole and is not the model's answer"
    elif outcome.ending in {Ending.STATUS, Ending.EVENT}:
        yield from _wrongs_of_failure(row, client, outcome, coming)
        if not text.startswith(outcome.text):
            yield "what came is not the beginning of the model's answer"
    else:
        yield "neither a completion nor a typed error"


def _finish_reason(row: Row, client: Client) -> str:
    if client.vendor == "anthropic":
        return "max_tokens" if row.short else "end_turn"
    return "length" if row.short else "stop"


def _wrongs_of_failure(row: Row, client: Client, outcome: Outcome, coming: str) -> Iterator[str]:
    if coming == OK:
        yield "a failure of what has to succeed"
        return
    kind = KINDS[coming]
    if coming == REJECTED and client.vendor == "openai":
        # The upstream's own word is passed on there.
        if outcome.code is None or outcome.code in KINDS:
            yield "not the upstream's reason"
    elif outcome.code != coming:
        yield f"not {coming}"
    if outcome.status not in {kind.status, None} or (outcome.status is None and outcome.ending is Ending.STATUS):
        yield f"not status {kind.status}"
    if client.vendor == "ours" and outcome.retryable is not kind.retryable:
        yield f"not retryable={kind.retryable}"
    yield from _wrongs_of_place(row, client, outcome)


def _wrongs_of_place(row: Row, client: Client, outcome: Outcome) -> Iterator[str]:
    """Tell whether a failure came where it could not have been told better."""
    if outcome.ending is Ending.EVENT:
        if client.form == "whole" or (
            client.form == "stream" and not outcome.text and outcome.seconds < HEADERS_AFTER_S
        ):
            yield "an event where a status could still be sent"
        if row.after_content and not outcome.text:
            yield "what came before the failure is lost"
    elif client.form == "socket" or (row.after_content and client.form == "stream"):
        yield "a status where content has come before"


def _kinds(kind: type[ServiceError]) -> Iterator[type[ServiceError]]:
    yield kind
    for more in kind.__subclasses__():
        yield from _kinds(more)


KINDS = {kind.code: kind for kind in _kinds(ServiceError)}


ECHO = Question("", f"echo:{TEXT}")
SHORT = Question("", "Tell me a story.", max_tokens=20)


async def _answer(http: httpx.AsyncClient, dialect: str, question: Question, *, stream: bool) -> httpx.Response:
    """Ask the simulator itself, as the service asks it."""
    body: dict[str, Any] = {
        "model": question.model,
        "messages": [{"role": "user", "content": question.prompt}],
        "max_tokens": question.max_tokens,
    }
    if stream:
        body["stream"] = True
        if dialect == "openai":
            body["stream_options"] = {"include_usage": True}
    path = "/v1/chat/completions" if dialect == "openai" else "/v1/messages"
    headers = {} if dialect == "openai" else {"anthropic-version": "2023-06-01"}
    return (await http.post(path, json=body, headers=headers)).raise_for_status()


async def _short_text(http: httpx.AsyncClient, dialect: str) -> str:
    question = replace(SHORT, model=f"{UPSTREAMS[dialect]};tokens=400")
    answer = (await _answer(http, dialect, question, stream=False)).json()
    text: str = answer["choices"][0]["message"]["content"] if dialect == "openai" else answer["content"][0]["text"]
    return text


async def _question(http: httpx.AsyncClient, row: Row, dialect: str) -> Question:
    question = replace(SHORT if row.short else ECHO, model=f"{UPSTREAMS[dialect]};{row.directives}")
    if NEAR_THE_END not in question.model:
        return question
    # At that place, which is past the end, nothing happens, and the answer has its length.
    whole = await _answer(http, dialect, question, stream=True)
    place = str(len(whole.content) - BYTES_FROM_THE_END)
    assert len(place) == len(NEAR_THE_END)
    return replace(question, model=question.model.replace(NEAR_THE_END, place))


async def _run(service: WatchedService, simulator: str) -> Matrix:
    outcomes: dict[tuple[str, str, str], Outcome] = {}
    slots = {True: asyncio.Semaphore(WAITING_AT_ONCE), False: asyncio.Semaphore(WORKING_AT_ONCE)}
    async with open_clients(service.base_url, KEY) as clients, asyncio.TaskGroup() as group:

        async def case(row: Row, dialect: str, client: Client, question: Question) -> None:
            async with slots[row.waits]:
                outcomes[row.directives, dialect, client.name] = await client.ask(question)

        async with httpx.AsyncClient(base_url=simulator, trust_env=False) as http:
            short_texts = {dialect: await _short_text(http, dialect) for dialect in UPSTREAMS}
            for row, dialect in itertools.product(ROWS, UPSTREAMS):
                question = await _question(http, row, dialect)
                for client in clients:
                    group.create_task(case(row, dialect, client, question))
    return Matrix(clients, short_texts, outcomes, service, simulator)


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory, show: Callable[[str, list[str]], None]) -> Iterator[Matrix]:
    folder: Path = tmp_path_factory.mktemp("matrix")
    with (
        simulating("--ttft-ms", "1", "--gap-ms", "0") as simulator,
        watched_service(
            simulator,
            folder,
            timeouts_s=TIMEOUTS_S,
            streams={"headers_after_s": HEADERS_AFTER_S},
            # All cases share the service: one's timeouts and limits must not make it careful with another's calls.
            admission={"adaptive_concurrency": False},
        ) as service,
    ):
        ran = asyncio.run(_run(service, simulator))
        show("faults, routes and clients", list(_table(ran)))
        yield ran


def _table(matrix: Matrix) -> Iterator[str]:
    width = max(len(_label(row)) for row in ROWS)
    yield "ok: complete and true · a number: that status · event: an error after the status · !: wrong"
    yield "of two figures in one place, the first is over an OpenAI upstream, the second over an Anthropic one"
    for number, client in enumerate(matrix.clients, 1):
        yield f"{number:>3} {client.name}"
    yield f"{'what the provider does':{width}}  " + "".join(
        f"{number:<9}" for number in range(1, len(matrix.clients) + 1)
    )
    for row in ROWS:
        yield f"{_label(row):{width}}  " + "".join(f"{_cell(matrix, row, client):<9}" for client in matrix.clients)
    endings = [outcome.ending for outcome in matrix.outcomes.values()]
    wrong = sum(len(matrix.wrongs(row)) > 0 for row in ROWS)
    counts = ", ".join(f"{endings.count(ending)} {ending}" for ending in Ending)
    yield f"{len(endings)} cases: {counts}; {wrong} of {len(ROWS)} rows are wrong"


def _cell(matrix: Matrix, row: Row, client: Client) -> str:
    words = []
    for dialect in UPSTREAMS:
        outcome = matrix.outcomes[row.directives, dialect, client.name]
        word = {Ending.COMPLETE: "ok", Ending.STATUS: str(outcome.status)}.get(outcome.ending, outcome.ending)
        words.append(word + "!" * any(matrix.wrongs_of(row, client, dialect)))
    return "/".join(dict.fromkeys(words))


@pytest.mark.parametrize("row", ROWS, ids=_label)
def test_each_client_gets_the_whole_truth_or_a_typed_error(matrix: Matrix, row: Row) -> None:
    wrongs = matrix.wrongs(row)
    assert not wrongs, "\n".join(wrongs)


def test_every_fault_and_every_place_that_the_simulator_knows_is_in_the_matrix() -> None:
    asked = [parse(row.directives) for row in ROWS]
    assert {one.fault for one in asked} == FAULTS | {None}
    used = {item.name for item in fields(Directives) for one in asked if getattr(one, item.name) is not None}
    assert used | NO_FAULTS_OF_THEIR_OWN == {item.name for item in fields(Directives)}


def test_no_fault_leaves_anything_open_or_is_a_defect(matrix: Matrix) -> None:
    def open_calls() -> int:
        summary: dict[str, int] = httpx.get(f"{matrix.simulator}/ledger/summary", trust_env=False).json()
        return summary["open_calls"]

    assert eventually(lambda: matrix.service.active() == 0)
    assert eventually(lambda: open_calls() == 0)
    assert matrix.service.defects() == {}
    lines = matrix.service.log_lines()
    assert [line for line in lines if line["level"] in {"error", "critical"}] == []
    # The clients have patience for a slow machine; the service says itself how long it took.
    slowest = max((line for line in lines if line["message"] == "request"), key=lambda line: line["duration_ms"])
    assert slowest["duration_ms"] < MOST_S * 1000, slowest


LIES = [
    (Outcome("Zür", Ending.COMPLETE, "stop"), "not the model's answer"),
    (Outcome(TEXT, Ending.COMPLETE, "length"), "not the model's answer"),
    (Outcome("Zür"), "neither a completion nor a typed error"),
    (Outcome("Zür", Ending.TWICE, "stop"), "neither a completion nor a typed error"),
    (Outcome("", Ending.HUNG), "neither a completion nor a typed error"),
    (Outcome("Züg", Ending.EVENT, code=INVALID, status=502, retryable=True), "not the beginning"),
    (Outcome("", Ending.EVENT, code=INVALID, status=502, retryable=True), "a status could still be sent"),
    (Outcome("Zür", Ending.EVENT, code=TIMEOUT, status=504, retryable=True), "not upstream_invalid_response"),
    (Outcome("Zür", Ending.EVENT, code=INVALID, status=502, retryable=False), "not retryable"),
]


@pytest.mark.parametrize(("outcome", "wrong"), LIES)
def test_the_matrix_knows_a_lie(outcome: Outcome, wrong: str) -> None:
    async def nothing(question: Question, outcome: Outcome) -> None:
        raise NotImplementedError

    row = Row("", OK if outcome.finish_reason else INVALID, INVALID)
    client = Client("a", "ours", "stream", nothing)
    told = " ".join(wrongs_of(row, client, replace(outcome, request_ids={"a"}), TEXT, row.coming(client, "openai")))
    assert wrong in told


@pytest.mark.parametrize(("ending", "expected"), [("end", Ending.TRUNCATED), ("cut", Ending.BROKEN)])
@pytest.mark.parametrize("vendor", ["ours", "openai", "anthropic"])
async def test_no_client_takes_a_stream_without_its_end_for_a_completion(
    vendor: str, ending: Literal["end", "cut"], expected: Ending
) -> None:
    pieces = {
        "ours": [b"data: Hel\n\n"],
        "openai": openai_stream(["Hel"], finished=False),
        "anthropic": [
            # The SDK's helper collects there what comes.
            anthropic_event("message_start", message={"id": "r", "type": "message", "model": "m", "content": []}),
            *anthropic_stream(["Hel"], finished=False)[1:],
        ],
    }[vendor]
    liar = Answer(pieces, headers={"x-request-id": "a", "request-id": "a"}, ending=ending)
    async with scripted_upstream(liar) as service, open_clients(service.base_url, KEY) as clients:
        # It answers only what has a body.
        asked = [one for one in clients if (one.vendor, one.form) == (vendor, "stream") and "stream " not in one.name]
        outcomes = [await client.ask(Question("m", "Hello")) for client in asked]
    assert [outcome.text for outcome in outcomes] == ["Hel"] * len(asked)
    assert {outcome.ending for outcome in outcomes} == {expected}, outcomes
