"""Fingerprints of keys: the same for the same set, another for another, and nothing of a key in them."""

from pathlib import Path
from typing import Any

from service.config import ProviderSettings
from service.config.fingerprint import KeyFingerprints


def of(**settings: Any) -> str:
    return KeyFingerprints({"p": ProviderSettings.model_validate({"kind": "openai", **settings})})("p")


def test_the_order_of_keys_makes_no_difference_and_where_they_stand_neither(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("sk-two\n")
    assert of(keys=["sk-one", "sk-two"]) == of(keys=["sk-two", "sk-one"]) == of(keys=["sk-one"], key_files=[path])


def test_another_key_address_or_kind_makes_another() -> None:
    prints = [
        of(keys=["sk-one"]),
        of(keys=["sk-two"]),
        of(keys=["sk-one", "sk-two"]),
        of(keys=["sk-one"], base_url="http://127.0.0.1/v1"),
        of(keys=["sk-one"], kind="anthropic"),
        of(),
    ]
    assert len(set(prints)) == len(prints)
    assert all(len(text) == 12 and set(text) <= set("0123456789abcdef") for text in prints)


def test_a_file_is_followed_and_one_that_is_gone_for_a_moment_counts_as_before(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("sk-one")
    prints = KeyFingerprints({"p": ProviderSettings.model_validate({"kind": "openai", "key_files": [path]})})
    first = prints("p")
    path.unlink()
    assert prints("p") == first
    path.write_text("sk-two")
    second = prints("p")
    assert second != first
    other = tmp_path / "other"
    other.write_text("sk-one")
    # As Kubernetes replaces mounted files.
    other.replace(path)
    assert prints("p") == first


def test_a_file_that_never_was_is_as_good_as_no_key(tmp_path: Path) -> None:
    assert of(key_files=[tmp_path / "none"]) == of(key_files=[tmp_path / "none"])


def test_other_settings_replace_those_before() -> None:
    prints = KeyFingerprints({})
    prints.replace({"p": ProviderSettings.model_validate({"kind": "openai", "keys": ["sk-one"]})})
    assert prints("p") == of(keys=["sk-one"])
