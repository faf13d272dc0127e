"""The grammar by which a call asks for a pace, a length or a fault."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.simulator.directives import (
    FAULTS,
    NOTHING,
    DirectiveError,
    Directives,
    merge,
    parse,
    parse_headers,
    parse_model,
)


def test_a_model_name_carries_directives() -> None:
    name, found = parse_model("sim;ttft_ms=200;tokens=500;fault=cut;after_bytes=700")
    assert name == "sim"
    assert found == Directives(ttft_ms=200, tokens=500, fault="cut", after_bytes=700)


def test_any_other_model_name_asks_for_nothing() -> None:
    assert parse_model("gpt-4o-mini") == ("gpt-4o-mini", NOTHING)
    assert parse_model("sim-something") == ("sim-something", NOTHING)
    assert parse_model("gpt-4o-mini;gap_ms=0") == ("gpt-4o-mini", Directives(gap_ms=0))


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_every_fault_has_a_short_model_name(fault: str) -> None:
    assert parse_model(f"sim-{fault}")[1].fault == fault
    assert parse_model(f"sim-{fault.replace('_', '-')};times=2")[1] == Directives(fault=fault, times=2)


def test_a_header_carries_one_directive_or_all_of_them() -> None:
    assert parse_headers([(b"x-sim-ttft-ms", b"5"), (b"x-sim-fault", b"stall;after_chunks=2")]) == Directives(
        ttft_ms=5, fault="stall", after_chunks=2
    )
    assert parse_headers([(b"x-sim", b"tokens=3; gap_ms=1")]) == Directives(tokens=3, gap_ms=1)


def test_of_a_key_given_twice_the_last_holds() -> None:
    assert parse("tokens=1;tokens=2").tokens == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("falt=500", ["falt", "fault"]),
        ("fault=501", ["fault", "one of", "500", "'501'"]),
        ("tokens=many", ["tokens", "whole number from 0", "'many'"]),
        ("tokens=-1", ["tokens", "'-1'"]),
        ("jitter=2", ["jitter", "a number from 0 to 1"]),
        ("gap_ms=nan", ["gap_ms", "a number"]),
        ("early_headers=maybe", ["early_headers", "1 or 0"]),
        ("tokens", ["tokens", "''"]),
    ],
)
def test_a_wrong_directive_is_named_with_what_it_takes(text: str, words: list[str]) -> None:
    with pytest.raises(DirectiveError) as caught:
        parse(text)
    assert all(word in str(caught.value) for word in words)


def test_the_stronger_source_wins_key_by_key() -> None:
    assert merge(Directives(ttft_ms=1, tokens=5), Directives(ttft_ms=2)) == Directives(ttft_ms=2, tokens=5)


def test_a_fault_brings_its_own_place_and_counts() -> None:
    weaker = Directives(fault="cut", after_bytes=10, times=3, tokens=5)
    assert merge(weaker, Directives(fault="500")) == Directives(fault="500", tokens=5)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "ttft_ms": st.integers(0, 10_000),
            "tokens": st.integers(0, 1000),
            "chunk_bytes": st.integers(1, 1000),
            "fault": st.sampled_from(sorted(FAULTS)),
            "every": st.integers(1, 9),
            "key": st.text(st.characters(categories=("L", "N")), min_size=1),
        },
    )
)
def test_model_name_and_header_say_the_same(values: dict[str, object]) -> None:
    text = ";".join(f"{key}={value}" for key, value in values.items())
    assert parse_model(f"sim;{text}")[1] == parse(text) == Directives(**values)  # type: ignore[arg-type]  # by name
