"""Callers' keys: making, hashing, finding."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from service.auth.keys import KeyRing, has_valid_checksum, hash_key, new_key
from service.config import AuthSettings, KeySettings
from service.domain.principal import Principal

KEY = "alice-key-0123456789"


def test_new_keys_differ_and_carry_their_checksum() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    for key in keys:
        assert re.fullmatch(r"llm_[0-9A-Za-z]{33}", key)
        assert has_valid_checksum(key)


@given(st.integers(4, 36), st.sampled_from("abcXYZ019"))
def test_one_wrong_character_breaks_the_checksum(position: int, character: str) -> None:
    key = "llm_h8fq47NGqX0ub36doalWNHPlKS50u28FP"
    assert has_valid_checksum(key)
    mistyped = f"{key[:position]}{character}{key[position + 1 :]}"
    assert has_valid_checksum(mistyped) is (mistyped == key)


@pytest.mark.parametrize("key", ["", "llm_", "llm_short", new_key()[:-1], f"{new_key()}x", "llm_\ud800" + "x" * 32])
def test_cut_or_extended_key_has_no_valid_checksum(key: str) -> None:
    assert not has_valid_checksum(key)


@pytest.mark.parametrize("written", [KEY, hash_key(KEY)])
def test_ring_finds_the_owner_of_a_key_given_in_clear_or_hashed(written: str) -> None:
    settings = AuthSettings(keys={"alice": KeySettings(key=SecretStr(written), models=("gpt-4o",), priority="batch")})
    ring = KeyRing.from_settings(settings)
    assert ring.find(KEY) == Principal("alice", models=("gpt-4o",), priority="batch")
    assert ring.find(f"{KEY}x") is None
    assert ring.find(hash_key(KEY)) is None


@given(st.text())
def test_ring_knows_nothing_else_whatever_is_presented(credential: str) -> None:
    ring = KeyRing.from_settings(AuthSettings(keys={"alice": KeySettings(key=SecretStr(KEY))}))
    assert (ring.find(credential) is None) is (credential != KEY)


def test_ring_holds_no_key_in_clear() -> None:
    ring = KeyRing.from_settings(AuthSettings(keys={"alice": KeySettings(key=SecretStr(KEY))}))
    assert KEY not in repr(vars(ring))


def test_keys_from_the_file_take_what_the_settings_say_of_their_owner(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# rotation\nalice:{'n' * 16}\nbob:{hash_key('b' * 16)}\n")
    settings = AuthSettings(keys={"alice": KeySettings(key=SecretStr(KEY), models=("gpt-4o",))}, keys_file=path)
    ring = KeyRing.from_settings(settings)
    assert len(ring) == 3
    assert ring.find("n" * 16) == ring.find(KEY) == Principal("alice", models=("gpt-4o",))
    assert ring.find("b" * 16) == Principal("bob")
