"""Names that callers choose."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.names import LONGEST, plain_name
from service.usage_command import _table


@pytest.mark.parametrize("name", ["alice", "Zoë @ 東京", "a/b:c"])
def test_a_name_stays_as_it_is(name: str) -> None:
    assert plain_name(name) == name


@given(st.text(st.characters(), max_size=2 * LONGEST))
def test_whatever_is_given_is_one_line_of_utf8(text: str) -> None:
    name = plain_name(text)
    assert len(name) == min(len(text), LONGEST)
    assert name.isprintable()
    assert name.splitlines() in ([], [name])
    assert b"\x00" not in name.encode()


def test_a_table_has_a_line_for_each_row_whatever_a_user_is_called() -> None:
    lines = list(_table([{"user": "\x1b[31mpwn\nroot  99\u2028x\x85" + 99 * "y"}], ["user"]))
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)
    assert len(lines[1]) == 64
