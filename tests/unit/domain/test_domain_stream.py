"""Which events a reader lacks, and whether all of them are there."""

from hypothesis import given
from hypothesis import strategies as st

from service.domain.stream import FOREIGN_END, StreamEvent, events_after


def events(*numbers: int) -> list[StreamEvent]:
    return [StreamEvent(number, b"", last=number == FOREIGN_END) for number in numbers]


@given(numbers=st.sets(st.integers(1, 12)), is_ended=st.booleans(), after=st.integers(0, 14))
def test_a_reader_gets_all_that_it_lacks_or_hears_that_it_cannot(
    numbers: set[int], after: int, *, is_ended: bool
) -> None:
    kept = events(*sorted(numbers), *([FOREIGN_END] if is_ended else []))
    lacking = [event for event in kept if event.number > after]
    ordinary = [event.number for event in lacking if event.number != FOREIGN_END]
    is_whole = ordinary == list(range(after + 1, after + 1 + len(ordinary)))
    got = events_after(kept, after)
    if is_whole:
        assert got is not None
        assert list(got) == lacking
    else:
        assert got is None


def test_who_has_seen_the_foreign_end_lacks_nothing() -> None:
    assert events_after(events(1, 2, FOREIGN_END), FOREIGN_END) == ()
