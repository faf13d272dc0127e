"""The invoice: what it keeps, and that its totals agree with its records."""

from hypothesis import given
from hypothesis import strategies as st

from service.simulator.ledger import Call, Ledger


def open_call(ledger: Ledger, output_tokens: int = 0) -> Call:
    call = ledger.open_call(ledger.open_connection(), "openai", "/v1/chat/completions", "req_")
    call.output_tokens_total = output_tokens
    return call


def test_an_open_call_is_on_the_ledger_with_what_was_delivered_so_far() -> None:
    ledger = Ledger()
    call = open_call(ledger, 10)
    call.output_tokens_delivered = 4
    assert [record.as_json()["open"] for record in ledger.calls()] == [True]
    summary = ledger.summary()
    assert (summary["open_calls"], summary["output_tokens_delivered"]) == (1, 4)


def test_only_the_first_end_of_a_call_counts() -> None:
    ledger = Ledger()
    call = open_call(ledger)
    ledger.close_call(call, finished=True)
    ledger.close_call(call, client_left=True)
    assert (call.finished, call.client_left) == (True, False)
    assert (ledger.summary()["calls"], ledger.summary()["finished"]) == (1, 1)


def test_the_oldest_records_go_first_and_the_totals_stay() -> None:
    ledger = Ledger(most_calls=3)
    for _ in range(5):
        ledger.close_call(open_call(ledger, 2))
    assert [call.id for call in ledger.calls()] == [3, 4, 5]
    assert ledger.summary()["calls"] == 5
    assert ledger.summary()["output_tokens_total"] == 10


def test_records_are_read_on_from_an_id() -> None:
    ledger = Ledger(most_calls=4)
    for _ in range(6):
        open_call(ledger)
    assert [call.id for call in ledger.calls(since_id=4)] == [5, 6]
    assert [call.id for call in ledger.calls(since_id=1)] == [3, 4, 5, 6]
    assert list(ledger.calls(since_id=6)) == []


def test_calls_open_while_the_ledger_is_cleared_belong_to_no_total() -> None:
    ledger = Ledger()
    call = open_call(ledger, 7)
    ledger.clear()
    ledger.close_call(call)
    assert list(ledger.calls()) == []
    assert (ledger.summary()["calls"], ledger.summary()["output_tokens_total"]) == (0, 0)


def test_a_record_tells_each_instant_by_both_clocks() -> None:
    ledger = Ledger()
    call = open_call(ledger)
    ledger.close_call(call)
    ledger.close_connection(call.connection)
    record = call.as_json()
    received, closed = record["received_at"], record["closed_at"]
    assert isinstance(received, float)
    assert isinstance(closed, float)
    assert closed >= received
    assert record["received_monotonic_s"] == call.received_at
    assert record["connection_closed_monotonic_s"] is not None
    assert record["first_byte_at"] is None


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.booleans(), st.booleans())))
def test_totals_are_the_sums_of_the_records(calls: list[tuple[int, int, bool, bool]]) -> None:
    ledger = Ledger()
    for total, delivered, closes, left in calls:
        call = open_call(ledger, total)
        call.output_tokens_delivered = delivered
        if closes:
            ledger.close_call(call, finished=not left, client_left=left)
    records = list(ledger.calls())
    summary = ledger.summary()
    assert summary["calls"] == len(records)
    assert summary["output_tokens_total"] == sum(call.output_tokens_total for call in records)
    assert summary["output_tokens_delivered"] == sum(call.output_tokens_delivered for call in records)
    assert summary["client_left"] == sum(call.client_left for call in records)
    assert summary["finished"] == sum(call.finished for call in records)
    assert summary["open_calls"] == sum(call.closed_at is None for call in records)
