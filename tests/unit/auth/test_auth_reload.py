"""Callers' keys of a configuration that changed: in force at once, or not at all."""

from pathlib import Path
from typing import Any

import pytest

from service.auth.authenticator import KeyAuthenticator
from service.config import AuthSettings, Settings
from service.domain.clock import ManualClock
from service.domain.principal import ANONYMOUS
from service.errors import Unauthenticated

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
    path.write_text(f"bob:{BOB}")
    (await known.prepare(changed(keys_file=path)))()
    assert known.authenticate(BOB).name == "bob"
    path.write_text(f"carol:{ALICE}")
    clock.advance(1)
    assert known.authenticate(ALICE).name == "carol"
