"""Provider keys: taken in turn, read again when their file is another one."""

import logging
from pathlib import Path

import pytest
from pydantic import SecretStr

from service.domain.clock import ManualClock
from service.errors import UpstreamMisconfigured
from service.providers.keys import CHECK_INTERVAL_S, MAX_HEADERS, KeyRing, SdkHeaders


def ring(*files: Path, keys: tuple[str, ...] = (), clock: ManualClock | None = None) -> KeyRing:
    return KeyRing(provider="up", keys=[SecretStr(key) for key in keys], files=files, clock=clock or ManualClock())


def test_provider_without_keys_gives_none() -> None:
    assert ring().take() is None


def test_keys_are_taken_in_turn(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("c\n")
    made = ring(tmp_path / "key", keys=("a", "b"))
    taken = [made.take() for _ in range(6)]
    assert sorted(taken[:3], key=str) == ["a", "b", "c"]
    assert taken[:3] == taken[3:]


def test_replaced_file_is_read_again_after_the_interval(tmp_path: Path) -> None:
    path, clock = tmp_path / "key", ManualClock()
    path.write_text("old")
    made = ring(path, clock=clock)
    assert made.take() == "old"
    (tmp_path / "new").write_text("new")
    (tmp_path / "new").replace(path)
    assert made.take() == "old"
    clock.advance(CHECK_INTERVAL_S)
    assert made.take() == "new"


def test_file_that_goes_away_keeps_its_key_and_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, clock = tmp_path / "key", ManualClock()
    path.write_text("old")
    made = ring(path, clock=clock)
    made.take()
    path.unlink()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            clock.advance(CHECK_INTERVAL_S)
            assert made.take() == "old"
    assert len(caplog.records) == 1


def test_no_readable_file_at_all_is_a_misconfiguration(tmp_path: Path) -> None:
    with pytest.raises(UpstreamMisconfigured) as caught:
        ring(tmp_path / "missing").take()
    assert caught.value.provider == "up"


def test_empty_file_gives_no_key_and_the_others_go_on(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(" \n")
    assert ring(tmp_path / "key", keys=("a",)).take() == "a"


@pytest.mark.parametrize("unusable", ["sk-1\nsk-2", "sk-1\x00", "sk-é", "sk-1 sk-2"])
def test_file_whose_text_fits_no_header_keeps_its_key_and_is_told_once(
    unusable: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, clock = tmp_path / "key", ManualClock()
    path.write_text("old")
    made = ring(path, clock=clock)
    assert made.take() == "old"
    path.write_text(unusable, encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            clock.advance(CHECK_INTERVAL_S)
            assert made.take() == "old"
    assert len(caplog.records) == 1
    assert str(path) in caplog.text
    assert "sk-" not in caplog.text


def test_no_usable_file_at_all_is_a_misconfiguration(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-1\nsk-2")
    with pytest.raises(UpstreamMisconfigured):
        ring(tmp_path / "key").take()


def test_headers_are_made_once_for_each_key_and_forgotten_in_the_end(tmp_path: Path) -> None:
    made: list[str | None] = []
    path, clock = tmp_path / "key", ManualClock()

    def headers_for(key: str | None) -> dict[str, object]:
        made.append(key)
        return {"authorization": f"Bearer {key}", "left-out": object()}

    path.write_text("k0")
    headers = SdkHeaders(ring(path, clock=clock), headers_for)
    assert headers() == headers() == {"authorization": "Bearer k0"}
    assert made == ["k0"]
    for number in range(1, MAX_HEADERS + 2):
        (tmp_path / "new").write_text(f"k{number}")
        (tmp_path / "new").replace(path)
        clock.advance(CHECK_INTERVAL_S)
        headers()
    assert len(headers._made) <= MAX_HEADERS
