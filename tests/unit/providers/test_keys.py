"""Provider keys: taken in turn, read again when their file is another one, left alone while refused or limited."""

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr

from service.domain.clock import ManualClock
from service.errors import UpstreamError, UpstreamMisconfigured, UpstreamThrottled
from service.providers.allowance import LAPSE_S, LISTEN_S, Left, Resource
from service.providers.base import ProviderKey
from service.providers.keys import (
    CHECK_INTERVAL_S,
    MAX_HEADERS,
    MAX_MODELS,
    REFUSED_MAX_S,
    REFUSED_S,
    TELL_S,
    THROTTLED_MAX_S,
    THROTTLED_S,
    KeyRing,
    SdkHeaders,
)


def ring(
    *files: Path,
    keys: tuple[str, ...] = (),
    clock: ManualClock | None = None,
    forgiving: bool = False,
    on_dead: Callable[[int], None] | None = None,
    on_left: Callable[[Resource, float | None], None] | None = None,
    on_files: Callable[[bool], None] | None = None,
) -> KeyRing:
    return KeyRing(
        provider="up",
        keys=[SecretStr(key) for key in keys],
        files=files,
        clock=clock or ManualClock(),
        forgiving=forgiving,
        on_dead=on_dead,
        on_left=on_left,
        on_files=on_files,
    )


def secret(made: KeyRing, model: str = "m") -> str | None:
    key = made.take(model)
    assert key is not None
    return key.secret


def key_of(made: KeyRing, text: str) -> ProviderKey:
    key = made.take("m", lambda key: key.secret == text)
    assert key is not None
    return key


def test_provider_without_keys_gives_none() -> None:
    assert secret(ring()) is None


def test_keys_are_taken_in_turn(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("c\n")
    made = ring(tmp_path / "key", keys=("a", "b"))
    taken = [secret(made) for _ in range(6)]
    assert sorted(taken[:3], key=str) == ["a", "b", "c"]
    assert taken[:3] == taken[3:]


def test_neighbours_of_a_limited_key_share_its_calls_alike() -> None:
    made = ring(keys=("a", "b", "c", "d"))
    made.note(key_of(made, "a"), "m", UpstreamThrottled("slower", retry_after_s=50))
    assert Counter(secret(made) for _ in range(300)) == {"b": 100, "c": 100, "d": 100}


def test_who_gets_no_key_takes_nobodys_turn() -> None:
    made = ring(keys=("a", "b", "c"))
    turns = [secret(made) for _ in range(3)]
    for _ in range(5):
        assert made.take("m", lambda _: False) is None
        assert secret(made) == turns[0]
        assert made.take("m", lambda _: False) is None
        assert [secret(made), secret(made)] == turns[1:]


def test_replaced_file_is_read_again_after_the_interval(tmp_path: Path) -> None:
    path, clock = tmp_path / "key", ManualClock()
    path.write_text("old")
    made = ring(path, clock=clock)
    assert secret(made) == "old"
    (tmp_path / "new").write_text("new")
    (tmp_path / "new").replace(path)
    assert secret(made) == "old"
    clock.advance(CHECK_INTERVAL_S)
    assert secret(made) == "new"


def test_file_that_goes_away_keeps_its_key_and_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, clock = tmp_path / "key", ManualClock()
    path.write_text("old")
    made = ring(path, clock=clock)
    secret(made)
    path.unlink()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            clock.advance(CHECK_INTERVAL_S)
            assert secret(made) == "old"
    assert len(caplog.records) == 1


def test_no_readable_file_at_all_is_a_misconfiguration(tmp_path: Path) -> None:
    with pytest.raises(UpstreamMisconfigured) as caught:
        secret(ring(tmp_path / "missing"))
    assert caught.value.provider == "up"


def test_empty_file_gives_no_key_and_the_others_go_on(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(" \n")
    assert secret(ring(tmp_path / "key", keys=("a",))) == "a"


@pytest.mark.parametrize("unusable", ["sk-1\nsk-2", "sk-1\x00", "sk-é", "sk-1 sk-2"])
def test_file_whose_text_fits_no_header_keeps_its_key_and_is_told_once(
    unusable: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, clock = tmp_path / "key", ManualClock()
    path.write_text("old")
    made = ring(path, clock=clock)
    assert secret(made) == "old"
    path.write_text(unusable, encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            clock.advance(CHECK_INTERVAL_S)
            assert secret(made) == "old"
    assert len(caplog.records) == 1
    assert str(path) in caplog.text
    assert "sk-" not in caplog.text


def test_no_usable_file_at_all_is_a_misconfiguration(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-1\nsk-2")
    with pytest.raises(UpstreamMisconfigured):
        secret(ring(tmp_path / "key"))


def test_headers_are_made_once_for_each_key_and_forgotten_in_the_end() -> None:
    made: list[str | None] = []

    def headers_for(key: str | None) -> dict[str, object]:
        made.append(key)
        return {"authorization": f"Bearer {key}", "left-out": object()}

    headers = SdkHeaders(headers_for)
    first = ProviderKey("k0", "f0")
    assert headers(first) == headers(first) == {"authorization": "Bearer k0"}
    assert made == ["k0"]
    for number in range(1, MAX_HEADERS + 2):
        headers(ProviderKey(f"k{number}", f"f{number}"))
    assert len(headers._made) <= MAX_HEADERS


REFUSED = UpstreamMisconfigured("refused", upstream_code="invalid_api_key", refused="key")
OUT_OF_FUNDS = UpstreamMisconfigured("no money", upstream_code="insufficient_quota", refused="funds")


@pytest.mark.parametrize("error", [REFUSED, OUT_OF_FUNDS], ids=lambda error: error.refused)
def test_dead_key_is_left_alone_for_every_model_while_others_are_used(error: UpstreamMisconfigured) -> None:
    dead: list[int] = []
    made = ring(keys=("a", "b"), on_dead=dead.append)
    made.note(key_of(made, "a"), "m", error)
    assert {secret(made, model) for model in ("m", "n", "o", "p")} == {"b"}
    assert dead == [1]
    made.note(key_of(made, "b"), "m", error)
    with pytest.raises(UpstreamMisconfigured, match="all of our keys") as caught:
        made.take("m")
    assert (caught.value.refused, caught.value.upstream_code) == (error.refused, error.upstream_code)
    assert dead == [1, 2]


def test_all_are_refused_only_with_the_last_one() -> None:
    made = ring(keys=("a", "b"))
    a, b = key_of(made, "a"), key_of(made, "b")
    assert not made.all_refused()
    made.note(a, "m", REFUSED)
    assert not made.all_refused()
    made.note(b, "m", OUT_OF_FUNDS)
    assert made.all_refused()
    made.accepted(a)
    assert not made.all_refused()


def test_forgiving_ring_remembers_no_refusal_and_can_tell_only_of_a_single_key() -> None:
    assert ring(keys=("a",), forgiving=True).all_refused()
    assert not ring(keys=("a", "b"), forgiving=True).all_refused()


def test_retired_ring_takes_back_what_it_told_and_tells_no_more(tmp_path: Path) -> None:
    dead: list[int] = []
    left: list[float | None] = []
    good: list[bool] = []
    clock = ManualClock()
    (tmp_path / "key").write_text("")
    made = ring(
        tmp_path / "key",
        keys=("a", "b"),
        clock=clock,
        on_dead=dead.append,
        on_left=lambda _, ratio: left.append(ratio),
        on_files=good.append,
    )
    made.note(key_of(made, "a"), "m", REFUSED)
    assert (dead, good) == ([1], [False])
    made.retire()
    assert (dead, good) == ([1, 0], [False, True])
    made.note(key_of(made, "b"), "m", REFUSED)
    hear_of = made._in_turn[1].key
    mark = made.mark(hear_of, "m")
    assert mark is not None
    made.hear(mark, (Left("requests", 60, 30),))
    clock.advance(CHECK_INTERVAL_S)
    with pytest.raises(UpstreamMisconfigured):
        made.take("m")
    assert (dead, left, good) == ([1, 0], [], [False, True])


@pytest.mark.parametrize("broken", ["", "two keys", None])
def test_file_that_is_not_in_use_as_it_stands_is_told_of_until_it_is(tmp_path: Path, broken: str | None) -> None:
    path, clock = tmp_path / "key", ManualClock()
    told: list[bool] = []
    path.write_text("first")
    made = ring(path, clock=clock, on_files=told.append)
    assert secret(made) == "first"
    if broken is None:
        path.rename(tmp_path / "away")
    else:
        path.write_text(broken)
    for _ in range(2):
        clock.advance(CHECK_INTERVAL_S)
        assert secret(made) == "first"
    if broken is None:
        (tmp_path / "away").rename(path)
    else:
        path.write_text("second")
    clock.advance(CHECK_INTERVAL_S)
    assert secret(made) == ("first" if broken is None else "second")
    assert told == [True, False, False, True]


def test_refusal_of_a_model_takes_no_key_away() -> None:
    made = ring(keys=("a",))
    made.note(key_of(made, "a"), "m", UpstreamMisconfigured("no such model", refused="model"))
    assert secret(made) == "a"


@pytest.mark.parametrize("error", [REFUSED, OUT_OF_FUNDS], ids=lambda error: error.refused)
def test_dead_key_is_tried_by_one_call_at_a_time_and_ever_more_rarely(error: UpstreamMisconfigured) -> None:
    clock = ManualClock()
    made = ring(keys=("a", "b"), clock=clock)
    key = key_of(made, "a")
    made.note(key, "m", error)
    for doublings in range(12):
        rest_s = min(REFUSED_S[error.refused] * 2**doublings, REFUSED_MAX_S)
        clock.advance(rest_s - 0.01)
        assert {secret(made) for _ in range(4)} == {"b"}
        clock.advance(0.01)
        assert sorted(str(secret(made)) for _ in range(4)) == ["a", "b", "b", "b"]
        made.note(key, "m", error)


def test_calls_that_began_before_the_first_refusal_do_not_prolong_it() -> None:
    clock = ManualClock()
    made = ring(keys=("a", "b"), clock=clock)
    key = key_of(made, "a")
    for _ in range(50):
        made.note(key, "m", REFUSED)
    clock.advance(REFUSED_S["key"])
    assert "a" in {secret(made) for _ in range(2)}


def test_key_that_is_accepted_again_lives(caplog: pytest.LogCaptureFixture) -> None:
    dead: list[int] = []
    clock = ManualClock()
    made = ring(keys=("a", "b"), clock=clock, on_dead=dead.append)
    key = key_of(made, "a")
    with caplog.at_level(logging.INFO):
        made.note(key, "m", REFUSED)
        made.accepted(key)
        made.accepted(key)
    assert {secret(made) for _ in range(2)} == {"a", "b"}
    assert dead == [1, 0]
    assert [record.getMessage() for record in caplog.records] == ["provider key refused", "provider key accepted again"]


def test_logs_name_a_key_by_its_fingerprint_alone(caplog: pytest.LogCaptureFixture) -> None:
    made = ring(keys=("sk-very-secret",))
    key = key_of(made, "sk-very-secret")
    made.note(key, "m", REFUSED)
    (record,) = caplog.records
    assert record.__dict__["key"] == key.fingerprint
    assert "sk-very-secret" not in f"{record.__dict__} {key!r}"
    assert len(key.fingerprint) == 12


def test_replaced_file_is_read_at_once_when_its_key_is_refused(tmp_path: Path) -> None:
    path, clock = tmp_path / "key", ManualClock()
    path.write_text("old")
    made = ring(path, clock=clock)
    key = key_of(made, "old")
    path.write_text("newer")
    assert secret(made) == "old", "within the interval nobody looks"
    made.note(key, "m", REFUSED)
    assert secret(made) == "newer"
    made.note(key, "m", REFUSED)
    assert secret(made) == "newer", "what a call with the old key says is no news"


def test_limited_key_rests_for_its_model_and_for_as_long_as_it_was_told() -> None:
    clock = ManualClock()
    made = ring(keys=("a", "b"), clock=clock)
    made.note(key_of(made, "a"), "m", UpstreamThrottled("slower", retry_after_s=7))
    assert {secret(made) for _ in range(4)} == {"b"}
    assert {secret(made, "n") for _ in range(4)} == {"a", "b"}
    clock.advance(7)
    assert {secret(made) for _ in range(4)} == {"a", "b"}


def test_when_all_keys_are_limited_it_says_when_the_first_is_not() -> None:
    made = ring(keys=("a", "b"))
    made.note(key_of(made, "a"), "m", UpstreamThrottled("slower", retry_after_s=7))
    made.note(key_of(made, "b"), "m", UpstreamThrottled("slower", retry_after_s=3))
    with pytest.raises(UpstreamThrottled) as caught:
        made.take("m")
    assert caught.value.retry_after_s == 3


@pytest.mark.parametrize(("told_s", "rest_s"), [(None, THROTTLED_S), (86_400.0, THROTTLED_MAX_S)])
def test_limited_key_rests_for_a_usual_time_if_told_none_and_never_for_too_long(
    told_s: float | None, rest_s: float
) -> None:
    clock = ManualClock()
    made = ring(keys=("a",), clock=clock)
    made.note(key_of(made, "a"), "m", UpstreamThrottled("slower", retry_after_s=told_s))
    clock.advance(rest_s - 0.01)
    with pytest.raises(UpstreamThrottled):
        made.take("m")
    clock.advance(0.02)
    assert secret(made) == "a"


def test_limits_of_names_that_callers_make_up_do_not_fill_the_memory() -> None:
    made = ring(keys=("a",))
    key = key_of(made, "a")
    for number in range(3 * MAX_MODELS):
        made.note(key, f"made-up-{number}", UpstreamThrottled("slower"))
    (standing,) = made._in_turn
    assert len(standing.throttled_until) <= MAX_MODELS


def test_bars_are_asked_only_about_keys_that_could_be_used() -> None:
    made = ring(keys=("a", "b"))
    made.note(key_of(made, "a"), "m", REFUSED)
    asked: list[str | None] = []

    def bars_all(key: ProviderKey) -> bool:
        asked.append(key.secret)
        return False

    assert made.take("m", bars_all) is None
    assert asked == ["b"]


@pytest.mark.parametrize("error", [REFUSED, UpstreamThrottled("slower")])
def test_forgiving_ring_leaves_no_key_alone(error: UpstreamError) -> None:
    made = ring(keys=("a",), forgiving=True)
    made.note(key_of(made, "a"), "m", error)
    assert secret(made) == "a"


# What the provider says is left.


def hear(made: KeyRing, *found: Left, text: str = "a", model: str = "m") -> None:
    """Have a call with a key answered by headers that tell of what is left."""
    key = made.take(model, lambda key: key.secret == text)
    assert key is not None
    mark = made.mark(key, model)
    assert mark is not None
    made.hear(mark, found)


def test_key_of_which_nothing_is_left_is_passed_over_for_its_model() -> None:
    clock = ManualClock()
    made = ring(keys=("a", "b"), clock=clock)
    hear(made, Left("requests", 60, 0))
    assert {secret(made) for _ in range(4)} == {"b"}
    assert {secret(made, "n") for _ in range(4)} == {"a", "b"}
    clock.advance(1)
    assert "a" in {secret(made) for _ in range(2)}
    assert {secret(made) for _ in range(4)} == {"b"}, "what came back was taken by one call"


def test_when_nothing_is_left_of_any_key_it_says_exactly_when_something_is() -> None:
    clock = ManualClock()
    made = ring(keys=("a", "b"), clock=clock)
    hear(made, Left("requests", 60, 0), text="a")
    hear(made, Left("requests", 20, 0), text="b")
    with pytest.raises(UpstreamThrottled) as caught:
        made.take("m")
    assert caught.value.retry_after_s == pytest.approx(1.0)
    assert caught.value.upstream_status is None
    clock.advance(caught.value.retry_after_s or 0.0)
    assert secret(made) == "a"


def test_key_without_the_tokens_is_passed_over_for_one_that_has_them() -> None:
    made = ring(keys=("a", "b"))
    hear(made, Left("tokens", 6_000, 100), text="a")
    hear(made, Left("tokens", 6_000, 500), text="b")
    taken = [made.take("m", tokens=200) for _ in range(2)]
    assert [key.secret for key in taken if key is not None] == ["b", "b"]
    with pytest.raises(UpstreamThrottled) as caught:
        made.take("m", tokens=200)
    assert caught.value.retry_after_s == pytest.approx(1.0)
    assert secret(made) in {"a", "b"}, "less passes"


def test_calls_that_ran_before_the_first_word_are_counted() -> None:
    made = ring(keys=("a",))
    key = key_of(made, "a")
    mark = made.mark(key, "m")
    assert mark is not None
    for _ in range(5):
        made.take("m", tokens=10)
    made.hear(mark, (Left("requests", 60, 5), Left("tokens", 600, 600)))
    assert made.wait_s("m") == pytest.approx(1.0)
    assert made.wait_s("m", tokens=560) == pytest.approx(1.0)
    assert made.wait_s("m", tokens=580) == pytest.approx(3.0)


def test_bars_are_not_asked_about_keys_of_which_nothing_is_left() -> None:
    made = ring(keys=("a", "b"))
    hear(made, Left("requests", 60, 0))
    asked: list[str | None] = []

    def bars_all(key: ProviderKey) -> bool:
        asked.append(key.secret)
        return False

    with pytest.raises(UpstreamThrottled):
        made.take("m", bars_all)
    assert asked == ["b"]


def test_a_refusal_and_a_word_count_both() -> None:
    clock = ManualClock()
    made = ring(keys=("a",), clock=clock)
    hear(made, Left("requests", 60, 0))
    made.note(key_of_any(made), "m", UpstreamThrottled("slower", retry_after_s=7))
    assert made.wait_s("m") == 7
    clock.advance(7)
    assert secret(made) == "a"
    hear(made, Left("requests", 6, 0))
    made.note(key_of_any(made), "m", UpstreamThrottled("slower", retry_after_s=2))
    assert made.wait_s("m") == pytest.approx(10)


def key_of_any(made: KeyRing) -> ProviderKey:
    return made._in_turn[0].key


def test_how_long_to_wait_is_said_of_the_first_key_that_may_go_on() -> None:
    made = ring(keys=("a", "b"))
    assert made.wait_s("m") == 0.0
    hear(made, Left("requests", 60, 0), text="a")
    assert made.wait_s("m") == 0.0
    hear(made, Left("requests", 30, 0), text="b")
    assert made.wait_s("m") == pytest.approx(1.0)
    assert made.wait_s("m", keep=0.5) == pytest.approx(31.0)
    assert made.wait_s("n") == 0.0


def test_asking_for_the_wait_changes_nothing() -> None:
    made = ring(keys=("a", "b"))
    hear(made, Left("requests", 60, 1), text="b")
    before = secret(made)
    for _ in range(5):
        assert made.wait_s("m", tokens=5, keep=0.0) == 0.0
    assert {before, secret(made)} == {"a", "b"}, "whose turn it is stays"


def test_dead_keys_are_nothing_to_wait_for() -> None:
    made = ring(keys=("a", "b"))
    made.note(key_of(made, "a"), "m", REFUSED)
    hear(made, Left("requests", 60, 0), text="b")
    assert made.wait_s("m") == pytest.approx(1.0), "the living one has to wait"
    made.note(key_of_any(made), "m", REFUSED)
    made.note(made._in_turn[1].key, "m", REFUSED)
    assert made.wait_s("m") == 0.0, "take has the word"
    with pytest.raises(UpstreamMisconfigured):
        made.take("m")


def test_no_key_at_all_is_nothing_to_wait_for(tmp_path: Path) -> None:
    assert ring(tmp_path / "missing").wait_s("m") == 0.0


def test_forgiving_ring_hears_nothing() -> None:
    made = ring(keys=("a",), forgiving=True)
    assert made.mark(key_of(made, "a"), "m") is None
    assert made.wait_s("m", tokens=10**9, keep=1.0) == 0.0


def test_word_about_a_key_that_was_replaced_is_for_nobody(tmp_path: Path) -> None:
    path, clock = tmp_path / "key", ManualClock()
    path.write_text("old")
    made = ring(path, clock=clock)
    old = key_of(made, "old")
    mark = made.mark(old, "m")
    assert mark is not None
    path.write_text("newer")
    clock.advance(CHECK_INTERVAL_S)
    assert secret(made) == "newer"
    made.hear(mark, (Left("requests", 60, 0),))
    assert made.wait_s("m") == 0.0
    assert made.mark(old, "m") is None


def test_names_that_callers_make_up_neither_fill_the_memory_nor_push_out_what_is_known() -> None:
    made = ring(keys=("a",))
    hear(made, Left("requests", 60, 0), model="real")
    for number in range(3 * MAX_MODELS):
        made.take(f"made-up-{number}")
    (standing,) = made._in_turn
    assert len(standing.allowances) <= MAX_MODELS
    assert made.wait_s("real") == pytest.approx(1.0)
    for number in range(3 * MAX_MODELS):
        hear(made, Left("requests", 60, 30), model=f"known-{number}")
    assert len(standing.allowances) <= MAX_MODELS


def test_what_is_left_is_told_of_the_key_and_model_with_the_least() -> None:
    clock = ManualClock()
    told: dict[str, list[float | None]] = {}
    made = ring(
        keys=("a", "b"), clock=clock, on_left=lambda resource, ratio: told.setdefault(resource, []).append(ratio)
    )
    hear(made, Left("requests", 60, 30), text="a")
    assert told == {"requests": [0.5]}
    hear(made, Left("requests", 60, 15), Left("tokens", 1_000, 900), text="b")
    assert told == {"requests": [0.5]}, "not for each call"
    clock.advance(TELL_S)
    hear(made, Left("requests", 60, 45), text="a", model="n")
    assert told == {"requests": [0.5, 0.25], "tokens": [0.9]}
    clock.advance(60)
    hear(made, Left("requests", 60, 45), text="a", model="n")
    assert told["requests"][-1] == 0.75, "what was heard long ago counts no more"


@pytest.mark.parametrize(
    ("left", "window_s"),
    [(Left("requests", 60, 0), 60), (Left("requests", 200, 20, reset_s=77_760), 77_760)],
    ids=["of a minute", "of a day"],
)
def test_what_is_left_is_told_until_the_vendors_window_is_over(left: Left, window_s: float) -> None:
    clock = ManualClock()
    told: list[float | None] = []
    made = ring(keys=("a",), clock=clock, on_left=lambda _, ratio: told.append(ratio))
    hear(made, left)
    (ratio,) = told
    clock.advance(window_s - 1)
    made.tell_left()
    assert told[-1] == ratio
    clock.advance(2)
    made.tell_left()
    made.tell_left()
    assert told == [ratio, ratio, None], "told once, without any traffic"


def test_retired_ring_takes_back_what_it_told_of_limits() -> None:
    told: list[float | None] = []
    made = ring(keys=("a",), on_left=lambda _, ratio: told.append(ratio))
    hear(made, Left("requests", 60, 30))
    made.retire()
    made.tell_left()
    assert told == [0.5, None]


@pytest.mark.parametrize("order", [("dead", "empty"), ("empty", "dead")])
def test_of_all_refusals_the_milder_one_is_told_whatever_the_order_of_the_keys(order: tuple[str, str]) -> None:
    made = ring(keys=order)
    for text, error in (("dead", REFUSED), ("empty", OUT_OF_FUNDS)):
        made.note(key_of(made, text), "m", error)
    with pytest.raises(UpstreamMisconfigured) as caught:
        made.take("m")
    assert caught.value.refused == "funds"


@pytest.mark.parametrize("later_s", [None, 3.0])
def test_later_429_does_not_shorten_the_rest_of_a_key(later_s: float | None) -> None:
    clock = ManualClock()
    made = ring(keys=("a",), clock=clock)
    key = key_of(made, "a")
    made.note(key, "m", UpstreamThrottled("slower", retry_after_s=30))
    clock.advance(1)
    made.note(key, "m", UpstreamThrottled("slower", retry_after_s=later_s))
    assert made.wait_s("m") == 29
    made.note(key, "m", UpstreamThrottled("slower", retry_after_s=40))
    assert made.wait_s("m") == 40


def test_key_that_is_given_back_has_its_turn_and_all_that_was_left_of_it() -> None:
    made = ring(keys=("a", "b"))
    for text in ("a", "b"):
        hear(made, Left("requests", 60, 1), Left("tokens", 600, 100), text=text)
    first = made.take("m", tokens=100)
    assert first is not None
    made.give_back(first, "m", tokens=100)
    assert made.take("m", tokens=100) is first
    assert made.take("m", tokens=100) is not first
    assert made.wait_s("m") == pytest.approx(1.0)
    assert made.wait_s("m", tokens=60) == pytest.approx(6.0)


def test_trial_of_a_dead_key_that_is_given_back_is_made_by_the_next_call() -> None:
    clock = ManualClock()
    made = ring(keys=("a",), clock=clock)
    made.note(key_of(made, "a"), "m", REFUSED)
    clock.advance(REFUSED_S["key"])
    key = key_of(made, "a")
    with pytest.raises(UpstreamMisconfigured):
        made.take("m")
    made.give_back(key, "m")
    assert secret(made) == "a"
    with pytest.raises(UpstreamMisconfigured):
        made.take("m")
    made.note(key, "m", REFUSED)
    clock.advance(2 * REFUSED_S["key"] - 0.01)
    with pytest.raises(UpstreamMisconfigured):
        made.take("m")


@pytest.mark.parametrize("forgiving", [False, True])
def test_key_that_nobody_knows_can_be_given_back(*, forgiving: bool) -> None:
    made = ring(keys=("a",), forgiving=forgiving)
    made.give_back(ProviderKey("replaced", "f"), "m", tokens=9)
    made.give_back(key_of_any(made), "never asked", tokens=9)
    assert secret(made) == "a"


def test_of_an_account_that_was_used_up_one_call_asks_what_is_left_and_the_others_wait() -> None:
    clock = ManualClock()
    made = ring(keys=("a",), clock=clock)
    hear(made, Left("requests", 200, 0, 86_000.0))
    clock.advance(LAPSE_S)
    asking = key_of(made, "a")
    for _ in range(500):
        with pytest.raises(UpstreamThrottled) as caught:
            made.take("m")
        assert caught.value.retry_after_s == LISTEN_S
    mark = made.mark(asking, "m")
    assert mark is not None
    made.hear(mark, (Left("requests", 200, 3, 80_000.0),))
    assert [secret(made) for _ in range(3)] == ["a"] * 3
    with pytest.raises(UpstreamThrottled):
        made.take("m")
