"""Texts of a given number of tokens. A word counts as one, as the simulator counts; tokenizers nearly do."""

import random
from functools import lru_cache
from typing import Final

_WORDS: Final = ("time", "year", "people", "way", "day", "thing", "life", "child", "world", "school", "state", "hand")
_BLOCK_TOKENS: Final = 512
"""Of one of Mooncake's blocks."""
MAX_CHARS: Final = 3_900
"""`/generate` and `/stream` take 4,000 characters; longer prompts are cut, on all routes alike."""


@lru_cache(maxsize=4096)
def _block(number: int, tokens: int) -> str:
    generator = random.Random(number)  # noqa: S311 - a text that repeats
    return " ".join(generator.choice(_WORDS) for _ in range(tokens))


def prompt(tokens: int, number: int, prefix: tuple[int, ...] = ()) -> str:
    """Return a text of so many tokens, that no other request has, but for the blocks of its prefix."""
    parts = [_block(block, _BLOCK_TOKENS) for block in prefix[: tokens // _BLOCK_TOKENS]]
    left = max(tokens - len(parts) * _BLOCK_TOKENS, 1)
    # The number stands first, so that prompts are not cached by accident; long texts are slices of one.
    tail = _block(0, 1_024)[: left * 6]
    text = " ".join([*parts, str(number), tail]) if parts else f"{number} {tail}"
    words = text.split(" ")[: max(tokens, 1)]
    return " ".join(words)[:MAX_CHARS]
