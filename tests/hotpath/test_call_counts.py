"""The hot path takes no more calls of functions than were recorded: counted, so that a busy machine cannot matter."""

from collections.abc import Mapping

import pytest

from tests.hotpath.counting import VERSION, counted_service, recorded

MOST = 1.10


@pytest.fixture(scope="module")
def counts() -> Mapping[str, int]:
    if VERSION not in recorded():
        pytest.skip(f"nothing is recorded for Python {VERSION}: python -m tests.hotpath.counting")
    with counted_service() as counting:
        return counting.measure()


@pytest.mark.parametrize("what", ["plain_request", "stream_without_chunks", "stream_chunk"])
def test_calls_do_not_grow_by_more_than_a_tenth(counts: Mapping[str, int], what: str) -> None:
    known = recorded()[VERSION][what]
    print(f"{what}: {counts[what]} calls, {known} recorded")
    assert counts[what] <= MOST * known, (
        f"{what}: {counts[what]} calls of functions, {known} are recorded. Take out what was added, "
        "or record it anew and say why: python -m tests.hotpath.counting"
    )
