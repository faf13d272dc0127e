"""The checker finds each broken promise, and nothing where there is none."""

from dataclasses import replace

import pytest

from tests.jobs.history import History, Seen, broken


def sound() -> History:
    return History(
        accepted={"a": 1.0, "b": 1.0},
        cancelled={"b": 2.0},
        seen=[Seen("a", 1.5, "pending", None), Seen("b", 2.5, "cancelled", None)],
        final={"a": Seen("a", 9.0, "complete", "Hello"), "b": Seen("b", 9.0, "cancelled", None)},
        kills=[3.0],
        calls={"a": [1.5, 5.0]},
    )


def test_what_keeps_its_word_is_found_sound() -> None:
    assert broken(sound()) == []


@pytest.mark.parametrize(
    ("rule", "changed"),
    [
        ("lost", {"accepted": {"a": 1.0, "b": 1.0, "c": 1.0}}),
        ("not ended", {"final": {**sound().final, "a": Seen("a", 9.0, "pending", None)}}),
        ("changed after its end", {"seen": [Seen("a", 8.0, "complete", "Goodbye")]}),
        ("changed after its end", {"seen": [Seen("a", 8.0, "failed", None)]}),
        ("changed after its end", {"seen": [Seen("a", 7.0, "complete", "Hello"), Seen("a", 8.0, "pending", None)]}),
        ("not cancelled", {"final": {**sound().final, "b": Seen("b", 9.0, "complete", "Hello")}}),
        ("not cancelled", {"seen": [Seen("b", 2.1, "pending", None)]}),
        ("never run", {"calls": {}}),
        ("paid twice", {"calls": {"a": [1.5, 4.0, 5.0]}}),
        ("paid twice", {"kills": []}),
        ("re-run late", {"calls": {"a": [1.5, 48.5]}}),
        ("re-run without a kill", {"calls": {"a": [1.0, 2.0]}}),
    ],
)
def test_a_broken_promise_is_found(rule: str, changed: dict[str, object]) -> None:
    found = broken(replace(sound(), **changed))  # type: ignore[arg-type] # the cases are of the fields' types
    assert any(text.startswith(rule) for text in found), found


def test_a_kill_may_cost_as_many_calls_as_ran() -> None:
    three = replace(sound(), calls={"a": [1.5, 4.0], "b": [2.5, 4.0], "c": [2.9, 4.0]})
    assert broken(three)
    assert broken(three, kills_cost=3) == []
