"""Callers' keys of a configuration that changed: in force at once, or not at all."""

from pathlib import Path
from typing import Any

import pytest

from service.auth.authenticator import KeyAuthenticator
from service.config import AuthSettings, Settings
from service.config.watch import SETTLED_S
from service.domain.clock import ManualClock
from service.domain.principal import ANONYMOUS
from service.errors import Unauthenticated
from tests.support.files import write

ALICE, BOB = "alice-key-0123456789", "bob-key-0123456789"


def authenticator(**auth: Any) -> KeyAuthenticator:
    given = {"enabled": True, "keys": {"alice": ALICE, "bob": BOB}, **auth}
    return KeyAuthenticator(AuthSettings.model_validate(given), ManualClock())


def changed(**auth: Any) -> Settings:
    return Settings.model_validate({"auth": {"enabled": True, **auth}})


async def test_a_key_that_was_taken_out_is_dead_from_then_on_and_not_before() -> None:
    known = authenticator()
    bob = known.authenticate(BOB)
    commit = await known.prepare(changed(keys={"alice": ALICE}))
    assert known.authenticate(BOB) == bob
    commit()
    assert known.authenticate(ALICE).name == "alice"
    with pytest.raises(Unauthenticated):
        known.authenticate(BOB)
    with pytest.raises(Unauthenticated):
        known.renew(bob)


async def test_limits_of_everybody_change_on_open_sockets_too_where_authentication_is_off() -> None:
    known = authenticator(enabled=False, default_limits={"requests_per_minute": 100})
    anonymous = known.authenticate(None)
    (await known.prepare(changed(enabled=False, default_limits={"requests_per_minute": 5})))()
    assert known.renew(anonymous).limits.requests_per_minute == 5


async def test_key_that_has_two_names_after_the_change_leaves_the_keys_as_they_were(tmp_path: Path) -> None:
    known = authenticator()
    (tmp_path / "keys").write_text(f"carol:{ALICE}")
    with pytest.raises(ValueError, match="a key of its own for each name"):
        await known.prepare(changed(keys={"alice": ALICE}, keys_file=tmp_path / "keys"))
    assert known.authenticate(BOB).name == "bob"


async def test_who_may_do_less_may_do_so_at_once_on_open_sockets_too() -> None:
    known = authenticator()
    alice = known.authenticate(ALICE)
    (await known.prepare(changed(keys={"alice": {"key": ALICE, "models": ["gpt-4o"]}})))()
    assert known.renew(alice).models == ("gpt-4o",)


@pytest.mark.parametrize("enabled", [True, False])
async def test_whether_authentication_is_on_does_not_change(enabled: bool) -> None:  # noqa: FBT001 - what is tested
    known = authenticator(enabled=enabled)
    (await known.prepare(changed(enabled=not enabled, keys={})))()
    if enabled:
        with pytest.raises(Unauthenticated):
            known.authenticate(ALICE)
    else:
        assert known.authenticate(None) == ANONYMOUS


async def test_a_file_that_cannot_be_used_leaves_the_keys_as_they_were(tmp_path: Path) -> None:
    known = authenticator()
    with pytest.raises(FileNotFoundError):
        await known.prepare(changed(keys_file=tmp_path / "none"))
    assert known.authenticate(BOB).name == "bob"


async def test_another_file_is_followed_from_then_on(tmp_path: Path) -> None:
    clock = ManualClock()
    settings = AuthSettings.model_validate({"enabled": True, "keys": {"alice": ALICE}})
    known = KeyAuthenticator(settings, clock)
    path = tmp_path / "keys"
    write(path, f"bob:{BOB}", clock, age_s=1)
    (await known.prepare(changed(keys_file=path)))()
    assert known.authenticate(BOB).name == "bob"
    write(path, f"carol:{ALICE}", clock)
    clock.advance(1)
    assert known.authenticate(ALICE).name == "carol"


async def test_a_file_of_keys_that_is_being_written_is_not_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock()
    path = tmp_path / "keys"
    write(path, f"bob:{BOB}", clock)
    known = KeyAuthenticator(AuthSettings.model_validate({"enabled": True, "keys": {"alice": ALICE}}), clock)

    async def goes_on(_: float) -> None:
        write(path, f"bob:{BOB}\ncarol:carol-key-0123456789", clock)

    monkeypatch.setattr("service.auth.authenticator.asyncio.sleep", goes_on)
    with pytest.raises(ValueError, match="is being written"):
        await known.prepare(changed(keys_file=path))
    assert known.authenticate(ALICE).name == "alice"


async def test_a_file_of_keys_that_was_just_written_is_taken_over_when_it_stays_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock()
    waited: list[float] = []
    path = tmp_path / "keys"
    write(path, f"bob:{BOB}", clock)
    known = KeyAuthenticator(AuthSettings.model_validate({"enabled": True, "keys": {"alice": ALICE}}), clock)

    async def passes(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr("service.auth.authenticator.asyncio.sleep", passes)
    (await known.prepare(changed(keys_file=path)))()
    assert known.authenticate(BOB).name == "bob"
    assert waited == [SETTLED_S]
