"""The checker finds each broken promise, and nothing where there is none."""

from dataclasses import replace

import pytest

from tests.jobs.history import History, Seen, broken


def look(job: str, at: float, state: str, result: str | None = None, *, took: float = 0.1) -> Seen:
    return Seen(job, at - took, at, state, result)


def sound() -> History:
    return History(
        accepted={"a": 1.0, "b": 1.0},
        cancelled={"b": 2.0},
        seen=[look("a", 1.5, "pending"), look("b", 2.5, "cancelled")],
        final={"a": look("a", 9.0, "complete", "Hello"), "b": look("b", 9.0, "cancelled")},
        kills=[3.0],
        calls={"a": [1.5, 5.0]},
    )


def test_what_keeps_its_word_is_found_sound() -> None:
    assert broken(sound()) == []


@pytest.mark.parametrize(
    ("rule", "changed"),
    [
        ("lost", {"accepted": {"a": 1.0, "b": 1.0, "c": 1.0}}),
        ("not ended", {"final": {**sound().final, "a": look("a", 9.0, "pending")}}),
        ("two ends", {"seen": [look("a", 8.0, "complete", "Goodbye")]}),
        ("two ends", {"seen": [look("a", 8.0, "failed")]}),
        ("open after its end", {"seen": [look("a", 7.0, "complete", "Hello"), look("a", 8.0, "pending")]}),
        ("result after an acknowledged cancel", {"final": {**sound().final, "b": look("b", 9.0, "complete", "Hello")}}),
        ("result after an acknowledged cancel", {"seen": [look("b", 2.5, "failed")]}),
        ("open after an acknowledged cancel", {"seen": [look("b", 2.5, "pending")]}),
        ("never run", {"calls": {}}),
        ("paid twice", {"calls": {"a": [1.5, 4.0, 5.0]}}),
        ("paid twice", {"kills": []}),
        ("re-run late", {"calls": {"a": [1.5, 48.5]}}),
        ("re-run without a kill", {"calls": {"a": [1.0, 2.0]}}),
    ],
)
def test_a_broken_promise_is_found(rule: str, changed: dict[str, object]) -> None:
    found = broken(replace(sound(), **changed))  # type: ignore[arg-type] # the cases are of the fields' types
    assert any(text.startswith(f"{rule}:") for text in found), found


def test_an_answer_that_was_long_on_its_way_breaks_nothing() -> None:
    late = [look("a", 9.5, "pending", took=2.0), look("b", 2.5, "pending", took=1.0)]
    assert broken(replace(sound(), seen=late)) == []


def test_a_kill_may_cost_as_many_calls_as_ran() -> None:
    three = replace(sound(), calls={"a": [1.5, 4.0], "b": [2.5, 4.0], "c": [2.9, 4.0]})
    assert broken(three)
    assert broken(three, kills_cost=3) == []
