"""Callers' keys: how a new one is made, and which of those configured somebody presents. No key is kept in clear."""

import hmac
import secrets
import string
import zlib
from collections.abc import Iterable
from dataclasses import replace
from hashlib import sha256
from typing import Self

from service.config import AuthSettings, LimitSettings, digest_of, read_keys_file
from service.domain.limits import Limits
from service.domain.principal import Principal

PREFIX = "llm_"
"""Opens every key that we make, so that scanners for leaked secrets can know it."""
RANDOM_CHARACTERS = 27
"""Of 62 kinds: 160 bits."""
CHECK_CHARACTERS = 6
"""The CRC-32 of what stands before, in the same characters; tells a mistyped or cut key from a wrong one."""

_ALPHABET = string.digits + string.ascii_letters


def new_key() -> str:
    """Make a key: ``llm_``, 160 random bits, a checksum."""
    body = PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(RANDOM_CHARACTERS))
    return body + _checksum(body)


def has_valid_checksum(key: str) -> bool:
    """Whether a key that opens with ``llm_`` was typed as it was made; it may be nobody's all the same."""
    body, check = key[:-CHECK_CHARACTERS], key[-CHECK_CHARACTERS:]
    return len(body) == len(PREFIX) + RANDOM_CHARACTERS and hmac.compare_digest(
        check.encode("utf-8", "surrogatepass"), _checksum(body).encode()
    )


def hash_key(key: str) -> str:
    """Write a key as the settings take it: ``sha256:`` and 64 hex digits.

    A plain hash is enough where the key is long and random; it would not be for a password.
    """
    return f"sha256:{sha256(key.encode()).hexdigest()}"


class KeyRing:
    """The keys of one moment, by digest; never changed, only replaced."""

    def __init__(self, keys: Iterable[tuple[bytes, Principal]]) -> None:
        self._holders = {digest: replace(principal, key_digest=digest) for digest, principal in keys}
        self._named = {principal.name: principal for principal in self._holders.values()}

    @classmethod
    def from_settings(cls, settings: AuthSettings) -> Self:
        """Take the keys from the settings, and from the file that they name.

        Raises ``OSError`` or ``ValueError`` where the file cannot be used; the latter for a key of two names too, since
        it would be unknown whose limits are its. Quotes nothing.
        """
        known = {digest_of(key.key.get_secret_value()): name for name, key in settings.keys.items()}
        if len(known) < len(settings.keys):
            raise ValueError("a key of its own for each name in auth.keys")
        nameless = default_principal("", settings)
        principals = {
            name: replace(
                nameless,
                name=name,
                models=key.models,
                priority=key.priority,
                weight=key.weight,
                sees_all_usage=key.usage == "all",
                log_content=key.log_content,
                limits=_limits(key.limits).over(nameless.limits),
            )
            for name, key in settings.keys.items()
        }
        keys = [(digest, principals[name]) for digest, name in known.items()]
        if settings.keys_file is not None:
            for name, digest in read_keys_file(settings.keys_file, known):
                keys.append((digest, principals.get(name) or replace(nameless, name=name)))
        return cls(keys)

    def __len__(self) -> int:
        """Count the keys."""
        return len(self._holders)

    def find(self, credential: str) -> Principal | None:
        """Return whose key this is, or None; takes the same time for every wrong key of the same length.

        Looking up by digest tells an observer nothing that helps: to choose a digest one has to find the key first.
        """
        return self.holder(sha256(credential.encode("utf-8", "surrogatepass")).digest())

    def holder(self, digest: bytes) -> Principal | None:
        """Return whose key has this digest, or None."""
        return self._holders.get(digest)

    def named(self, name: str) -> Principal | None:
        """Return the principal of this name, if it has a key."""
        return self._named.get(name)


def default_principal(name: str, settings: AuthSettings) -> Principal:
    """Make a principal of whom the settings say nothing by name."""
    return Principal(name, limits=_limits(settings.default_limits), user_limits=_limits(settings.user_limits))


def _limits(settings: LimitSettings) -> Limits:
    return Limits(**settings.model_dump())


def _checksum(body: str) -> str:
    number = zlib.crc32(body.encode("utf-8", "surrogatepass"))
    characters = []
    for _ in range(CHECK_CHARACTERS):
        number, digit = divmod(number, len(_ALPHABET))
        characters.append(_ALPHABET[digit])
    return "".join(reversed(characters))
