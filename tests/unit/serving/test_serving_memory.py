"""What the start made is left out of later collections of garbage."""

import gc
from collections.abc import Iterator

import pytest

from service.serving.memory import settle


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_what_is_there_at_the_start_is_not_gone_through_again() -> None:
    settle()
    assert gc.get_freeze_count() > 10_000
    assert len(gc.get_objects()) < 10_000
