"""Names that callers choose, made fit for records, tables and terminals."""

from typing import Final

LONGEST: Final = 256
"""Characters. Users' ids at the vendors have 64 at most; what is longer is text that does not belong here."""
REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"


def plain_name(text: str, *, longest: int = LONGEST) -> str:
    """Return a name without what moves a cursor, ends a line or has no place in UTF-8, and not too long."""
    text = text[:longest]
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else REPLACEMENT for character in text)
