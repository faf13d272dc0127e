"""Telling the sets of keys of a provider apart, without showing anything of them."""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from service.config.sections import ProviderSettings
from service.config.watch import Version, version_of

DIGITS = 12
"""Of the fingerprint: 48 bits, which tell apart and lead back to no key."""


class KeyFingerprints:
    """Knows the keys of all providers as they stand in the settings and in the files that these name.

    A file that cannot be read counts as it stood before: it may be in the middle of its replacement.
    """

    def __init__(self, providers: Mapping[str, ProviderSettings]) -> None:
        self._providers = providers
        self._files: dict[Path, tuple[Version, bytes]] = {}

    def replace(self, providers: Mapping[str, ProviderSettings]) -> None:
        """Go by these settings from now on."""
        self._providers = providers

    def __contains__(self, provider: object) -> bool:
        """Whether there is a provider of this name."""
        return provider in self._providers

    def __call__(self, provider: str) -> str:
        """Give the fingerprint of a provider's keys and address. Costs a stat for each of its files."""
        settings = self._providers[provider]
        keys = {key.get_secret_value().encode() for key in settings.keys}
        keys |= {self._key_in(path) for path in settings.key_files}
        whole = b"\n".join([f"{settings.kind} {settings.base_url}".encode(), *sorted(keys)])
        return sha256(whole).hexdigest()[:DIGITS]

    def _key_in(self, path: Path) -> bytes:
        known = self._files.get(path)
        try:
            version = version_of(path)
            if known is None or known[0] != version:
                known = self._files[path] = (version, path.read_bytes().strip())
        except OSError:
            pass
        return known[1] if known is not None else b""
