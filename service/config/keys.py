"""How callers' keys are written in settings and files; what to do with a key that somebody presents is auth's."""

import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

SHORTEST_KEY = 16
"""Characters of a key: with 62 letters and digits that is 95 bits, if they were drawn at random."""
LONGEST_NAME = 40
"""Characters of a key's name: shorter than any vendor's key, so that the two are not mistaken for each other."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_OPENINGS_OF_KEYS = ("sk-", "llm_", "sha256:")


def looks_like_a_key(text: str) -> bool:
    """Whether a text that is about to be shown could be a secret in the wrong place."""
    return text.startswith(_OPENINGS_OF_KEYS)


def is_key_name(text: str) -> bool:
    """Whether a text can be the name of a key, and is not the key itself."""
    return re.fullmatch(
        rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{LONGEST_NAME - 1}}}", text
    ) is not None and not looks_like_a_key(text)


def fits_a_header(text: str) -> bool:
    """Whether a key can be sent in an HTTP header."""
    return bool(text) and all("!" <= character <= "~" for character in text)


def checked_key(text: str) -> str:
    """Return a key, or ``sha256:`` and a digest, if it can be used; raise ``ValueError`` saying what can, if not."""
    if text.startswith("sha256:"):
        if not _DIGEST.fullmatch(text.lower()):
            raise ValueError("sha256: and 64 hex digits (`llm-api keys hash` makes them)")
        return text.lower()
    if len(text) < SHORTEST_KEY or not fits_a_header(text):
        raise ValueError(f"at least {SHORTEST_KEY} visible ASCII characters, or sha256: and 64 hex digits")
    return text


def digest_of(key: str) -> bytes:
    """Hash a checked key as it stands in the settings: itself, or ``sha256:`` and its digest already."""
    if key.startswith("sha256:"):
        return bytes.fromhex(key.removeprefix("sha256:"))
    return sha256(key.encode()).digest()


def read_keys(text: str) -> list[tuple[str, str]]:
    """Read ``name:key`` pairs, with commas or line ends between them; a line that starts with ``#`` is a comment.

    Raises ``ValueError`` with what would be right, and the number of the first entry that is not; never the entry.
    """
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    entries = [entry.strip() for line in lines for entry in line.split(",") if entry.strip()]
    pairs: list[tuple[str, str]] = []
    for number, entry in enumerate(entries, start=1):
        name, _, key = (part.strip() for part in entry.partition(":"))
        if not key or not is_key_name(name):
            raise ValueError(f"name:key or name:sha256:<64 hex digits>, which entry {number} is not")
        pairs.append((name, key))
    return pairs


def read_keys_file(path: Path, known: Mapping[bytes, str]) -> list[tuple[str, bytes]]:
    """Read a file of callers' keys into names and digests; ``known`` are keys from elsewhere, names by digests.

    Raises ``OSError``, or ``ValueError`` with what would be right; never with what stands in the file. A file without
    any entry is an error: somebody may be writing it, and nobody could call. So is a key that has two names.
    """
    try:
        pairs = read_keys(path.read_text("utf-8"))
    except UnicodeDecodeError:
        # A ValueError of its own, whose message quotes what was read.
        raise ValueError("text in UTF-8") from None
    if not pairs:
        raise ValueError("a line name:key or name:sha256:<64 hex digits> for at least one key")
    entries = [(name, digest_of(checked_key(key))) for name, key in pairs]
    owners = dict(known)
    for number, (name, digest) in enumerate(entries, start=1):
        if owners.setdefault(digest, name) != name:
            raise ValueError(f"a key of its own for each name, which entry {number} has not")
    return entries


def keys_by_name(value: Any) -> Any:
    """Take keys as text, as a map of name to key, or as a map of name to the key's settings."""
    if isinstance(value, str):
        if value.lstrip().startswith(("[", "{")):
            raise ValueError("a map in valid JSON, or name:key with commas between them")
        pairs = read_keys(value)
        if len({name for name, _ in pairs}) < len(pairs):
            raise ValueError("each name once")
        return {name: {"key": key} for name, key in pairs}
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) and is_key_name(name) for name in value):
            # Refused here and as a whole: a key that stands where the name belongs would be shown as a setting's name.
            raise ValueError(f"names of up to {LONGEST_NAME} letters, digits, '.', '_' and '-' on the left, keys right")
        return {name: {"key": key} if isinstance(key, str) else key for name, key in value.items()}
    return value
