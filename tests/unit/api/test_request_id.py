"""The id of a request cannot forge a header or a log line."""

import re

from hypothesis import given
from hypothesis import strategies as st

from service.api.request_id import request_id_from

HARMLESS = re.compile(r"[A-Za-z0-9._-]{1,64}")


@given(st.from_regex(rb"[A-Za-z0-9._-]{1,64}", fullmatch=True))
def test_a_harmless_id_is_taken_as_it_is(header: bytes) -> None:
    assert request_id_from(header) == header.decode()


@given(st.one_of(st.binary(max_size=80), st.none()))
def test_whatever_comes_the_id_is_harmless(header: bytes | None) -> None:
    assert HARMLESS.fullmatch(request_id_from(header))


def test_made_ids_differ() -> None:
    assert len({request_id_from(None) for _ in range(1_000)}) == 1_000
