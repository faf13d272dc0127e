"""Who calls, and what happens when the file of keys changes."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from service.auth.authenticator import KeyAuthenticator
from service.auth.keys import new_key
from service.config import AuthSettings, KeySettings
from service.domain.clock import ManualClock
from service.domain.principal import ANONYMOUS, Principal
from service.errors import Unauthenticated

KEY = "alice-key-0123456789"
OTHER = "bob-key-0123456789"


def over_file(path: Path, clock: ManualClock) -> KeyAuthenticator:
    return KeyAuthenticator(AuthSettings(enabled=True, keys_file=path), clock)


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
    path.write_text(f"alice:{KEY}")
    authenticator = over_file(path, clock)
    path.write_text(f"bob:{OTHER}")
    assert authenticator.authenticate(KEY).name == "alice"
    clock.advance(1)
    assert authenticator.authenticate(OTHER).name == "bob"
    with pytest.raises(Unauthenticated):
        authenticator.authenticate(KEY)


def test_file_that_is_replaced_is_noticed_though_size_and_time_stay(tmp_path: Path) -> None:
    path, clock = tmp_path / "keys", ManualClock()
    (tmp_path / "v1").write_text("alice:" + "a" * 16)
    (tmp_path / "v2").write_text("alice:" + "b" * 16)
    path.symlink_to(tmp_path / "v1")
    authenticator = over_file(path, clock)
    path.unlink()
    path.symlink_to(tmp_path / "v2")
    clock.advance(1)
    assert authenticator.authenticate("b" * 16).name == "alice"


@pytest.mark.parametrize("broken", ["no colon here", f"alice:{KEY},bob:short", None, b"\xff\xfe\xff"])
def test_broken_file_leaves_the_keys_as_they_were_and_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: str | bytes | None
) -> None:
    path, clock = tmp_path / "keys", ManualClock()
    path.write_text(f"alice:{KEY}")
    authenticator = over_file(path, clock)
    if broken is None:
        path.unlink()
    else:
        path.write_bytes(broken if isinstance(broken, bytes) else broken.encode())
    for _ in range(3):
        clock.advance(1)
        assert authenticator.authenticate(KEY).name == "alice"
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "no colon here" not in caplog.text
    assert KEY not in caplog.text
    path.write_text(f"bob:{OTHER}")
    clock.advance(1)
    assert authenticator.authenticate(OTHER).name == "bob"


def test_start_with_a_file_that_cannot_be_read_fails(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        over_file(tmp_path / "absent", ManualClock())


def test_principal_is_renewed_by_name_with_the_models_of_now() -> None:
    settings = AuthSettings(enabled=True, keys={"alice": KeySettings(key=SecretStr(KEY), models=("gpt-4o",))})
    assert KeyAuthenticator(settings, ManualClock()).renew(Principal("alice")).models == ("gpt-4o",)


def test_principal_whose_key_was_taken_out_of_the_file_is_not_renewed(tmp_path: Path) -> None:
    path, clock = tmp_path / "keys", ManualClock()
    path.write_text(f"alice:{KEY}")
    authenticator = over_file(path, clock)
    alice = authenticator.authenticate(KEY)
    assert authenticator.renew(alice) == alice
    path.write_text(f"bob:{OTHER}")
    clock.advance(1)
    with pytest.raises(Unauthenticated):
        authenticator.renew(alice)


def test_everybody_is_renewed_where_authentication_is_off() -> None:
    assert KeyAuthenticator(AuthSettings(enabled=False), ManualClock()).renew(ANONYMOUS) == ANONYMOUS
