"""Who calls, and what happens when the file of keys changes."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from service.auth.authenticator import FILE_CHECK_INTERVAL_S, KeyAuthenticator
from service.auth.keys import new_key
from service.config import AuthSettings, KeySettings
from service.domain.clock import ManualClock
from service.domain.principal import ANONYMOUS, Principal
from service.errors import Unauthenticated
from tests.support.files import write

KEY = "alice-key-0123456789"
OTHER = "bob-key-0123456789"


def over_file(path: Path, clock: ManualClock, told: list[bool] | None = None) -> KeyAuthenticator:
    on_file = None if told is None else told.append
    return KeyAuthenticator(AuthSettings(enabled=True, keys_file=path), clock, on_file=on_file)


def test_known_key_gives_its_owner() -> None:
    settings = AuthSettings(enabled=True, keys={"alice": KeySettings(key=SecretStr(KEY))})
    assert KeyAuthenticator(settings, ManualClock()).authenticate(KEY).name == "alice"


@pytest.mark.parametrize("credential", [None, "", "wrong", KEY[:-1], f"{KEY} ", "ключ", "\ud800"])
def test_anything_else_is_refused_without_repeating_it(credential: str | None) -> None:
    settings = AuthSettings(enabled=True, keys={"alice": KeySettings(key=SecretStr(KEY))})
    with pytest.raises(Unauthenticated) as caught:
        KeyAuthenticator(settings, ManualClock()).authenticate(credential)
    assert not credential or credential not in str(caught.value)


def test_mistyped_key_is_told_from_an_unknown_one() -> None:
    authenticator = KeyAuthenticator(AuthSettings(enabled=True), ManualClock())
    with pytest.raises(Unauthenticated, match="mistyped"):
        authenticator.authenticate(f"{new_key()[:-6]}000000")
    with pytest.raises(Unauthenticated, match="not known"):
        authenticator.authenticate(new_key())


@pytest.mark.parametrize("credential", [None, "whatever"])
def test_everybody_is_anonymous_where_authentication_is_off(credential: str | None) -> None:
    assert KeyAuthenticator(AuthSettings(enabled=False), ManualClock()).authenticate(credential) == ANONYMOUS


def test_settings_that_leave_it_open_do_not_open_the_door() -> None:
    with pytest.raises(Unauthenticated):
        KeyAuthenticator(AuthSettings(), ManualClock()).authenticate(None)


def test_file_is_read_again_within_a_second_of_its_change(tmp_path: Path) -> None:
    path, clock = tmp_path / "keys", ManualClock()
    write(path, f"alice:{KEY}", clock)
    authenticator = over_file(path, clock)
    write(path, f"bob:{OTHER}", clock)
    assert authenticator.authenticate(KEY).name == "alice"
    clock.advance(FILE_CHECK_INTERVAL_S)
    assert authenticator.authenticate(OTHER).name == "bob"
    with pytest.raises(Unauthenticated):
        authenticator.authenticate(KEY)


def test_key_that_was_taken_out_long_ago_is_refused_the_first_time_it_comes(tmp_path: Path) -> None:
    path, clock = tmp_path / "keys", ManualClock()
    write(path, f"alice:{KEY},bob:{OTHER}", clock)
    authenticator = over_file(path, clock)
    write(path, f"bob:{OTHER}", clock)
    clock.advance(3_600)
    with pytest.raises(Unauthenticated):
        authenticator.authenticate(KEY)


@pytest.mark.parametrize("half", ["", "alice:alice-k", f"alice:{KEY}\n", f"alice:{KEY}\nbob:bob-key-01234567"])
def test_file_that_is_being_written_revokes_nothing(
    tmp_path: Path, half: str, caplog: pytest.LogCaptureFixture
) -> None:
    path, clock = tmp_path / "keys", ManualClock()
    whole = f"alice:{KEY}\nbob:{OTHER}\n"
    write(path, whole, clock)
    authenticator = over_file(path, clock)
    clock.advance(10)
    for step in range(len(half) + 1):
        write(path, half[:step], clock, age_s=0.4)
        assert authenticator.authenticate(OTHER).name == "bob"
        clock.advance(FILE_CHECK_INTERVAL_S)
    write(path, f"{whole}carol:carol-key-0123456789", clock)
    clock.advance(FILE_CHECK_INTERVAL_S)
    assert authenticator.authenticate(OTHER).name == "bob"
    assert authenticator.authenticate("carol-key-0123456789").name == "carol"
    assert [record.levelname for record in caplog.records if record.levelname == "ERROR"] == []


def test_file_of_a_machine_whose_clock_goes_ahead_is_whole_when_two_looks_find_it_unchanged(tmp_path: Path) -> None:
    path, clock = tmp_path / "keys", ManualClock()
    write(path, f"alice:{KEY}", clock)
    authenticator = over_file(path, clock)
    write(path, f"bob:{OTHER}", clock, age_s=-60)
    clock.advance(FILE_CHECK_INTERVAL_S)
    assert authenticator.authenticate(KEY).name == "alice"
    clock.advance(FILE_CHECK_INTERVAL_S)
    assert authenticator.authenticate(OTHER).name == "bob"


def test_file_that_is_replaced_is_noticed_though_size_and_time_stay(tmp_path: Path) -> None:
    path, clock = tmp_path / "keys", ManualClock()
    write(tmp_path / "v1", "alice:" + "a" * 16, clock)
    write(tmp_path / "v2", "alice:" + "b" * 16, clock)
    path.symlink_to(tmp_path / "v1")
    authenticator = over_file(path, clock)
    path.unlink()
    path.symlink_to(tmp_path / "v2")
    clock.advance(FILE_CHECK_INTERVAL_S)
    assert authenticator.authenticate("b" * 16).name == "alice"


@pytest.mark.parametrize(
    "broken",
    ["no colon here", f"alice:{KEY},bob:short", f"alice:{OTHER},bob:{OTHER}", None, b"\xff\xfe\xff", "# nobody"],
)
def test_broken_file_leaves_the_keys_as_they_were_and_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: str | bytes | None
) -> None:
    path, clock = tmp_path / "keys", ManualClock()
    told: list[bool] = []
    write(path, f"alice:{KEY}", clock)
    authenticator = over_file(path, clock, told)
    if broken is None:
        path.unlink()
    else:
        write(path, broken, clock)
    for _ in range(3):
        clock.advance(FILE_CHECK_INTERVAL_S)
        assert authenticator.authenticate(KEY).name == "alice"
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "no colon here" not in caplog.text
    assert KEY not in caplog.text
    assert told == [False]
    write(path, f"bob:{OTHER}", clock)
    clock.advance(FILE_CHECK_INTERVAL_S)
    assert authenticator.authenticate(OTHER).name == "bob"
    assert told == [False, True]


def test_start_with_a_file_that_cannot_be_read_fails(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        over_file(tmp_path / "absent", ManualClock())


def test_principal_whose_key_nobody_knows_any_more_is_renewed_by_name_with_the_models_of_now() -> None:
    settings = AuthSettings(enabled=True, keys={"alice": KeySettings(key=SecretStr(KEY), models=("gpt-4o",))})
    assert KeyAuthenticator(settings, ManualClock()).renew(Principal("alice")).models == ("gpt-4o",)


def test_principal_whose_key_was_taken_out_of_the_file_is_not_renewed(tmp_path: Path) -> None:
    path, clock = tmp_path / "keys", ManualClock()
    write(path, f"alice:{KEY}", clock)
    authenticator = over_file(path, clock)
    alice = authenticator.authenticate(KEY)
    assert authenticator.renew(alice) == alice
    write(path, f"bob:{OTHER}", clock)
    clock.advance(FILE_CHECK_INTERVAL_S)
    with pytest.raises(Unauthenticated):
        authenticator.renew(alice)


def test_everybody_is_renewed_where_authentication_is_off() -> None:
    assert KeyAuthenticator(AuthSettings(enabled=False), ManualClock()).renew(ANONYMOUS) == ANONYMOUS


def test_key_that_was_replaced_under_its_own_name_is_not_renewed(tmp_path: Path) -> None:
    path, clock = tmp_path / "keys", ManualClock()
    write(path, f"alice:{KEY}\nalice:{OTHER}", clock)
    authenticator = over_file(path, clock)
    by_old, by_new = authenticator.authenticate(KEY), authenticator.authenticate(OTHER)
    write(path, f"alice:{OTHER}", clock)
    clock.advance(FILE_CHECK_INTERVAL_S)
    with pytest.raises(Unauthenticated, match="not known any more"):
        authenticator.renew(by_old)
    assert authenticator.renew(by_new) == by_old


def test_key_that_has_two_names_is_refused_at_the_start(tmp_path: Path) -> None:
    keys = {name: KeySettings(key=SecretStr(KEY)) for name in ("alice", "bob")}
    with pytest.raises(ValueError, match=r"a key of its own for each name in auth\.keys"):
        KeyAuthenticator(AuthSettings(enabled=True, keys=keys), ManualClock())
    path = tmp_path / "keys"
    path.write_text(f"bob:{KEY}")
    with pytest.raises(ValueError, match="a key of its own for each name, which entry 1 has not"):
        KeyAuthenticator(AuthSettings(enabled=True, keys={"alice": keys["alice"]}, keys_file=path), ManualClock())
