"""Texts as functions of a digest: tokens, answers, JSON that fits a schema, and how a given text falls into tokens."""

import random
import re
from hashlib import blake2b
from typing import Any, Final

import orjson


def _split(words: str) -> list[str]:
    return words.split()


_ADJECTIVES: Final = _split(
    "amber brisk calm deep early fair gentle hidden idle jade keen late mild narrow open pale quick red silent tall "
    "upper vivid warm young bold clear dim eager faint grand high inner"
)
_NOUNS: Final = _split(
    "anchor bridge cedar delta ember field garden harbor island juniper kettle lantern meadow north orchard pebble "
    "quarry river signal timber valley window yard zephyr archive beacon canyon dune estuary forge grove hollow"
)
_WORDS: Final = _split(
    "the a of and to in is that it as with for by on from at which into over under between after before while when "
    "where because each every some many few two three small large slow steady careful bright quiet plain exact long "
    "short near far water stone light wind paper letter number table answer question road map clock hour day night "
    "summer winter machine engine wheel wire line point edge corner center surface weight measure limit balance order "
    "pattern reason result cause effect moves turns holds keeps gives takes shows opens closes carries crosses follows "
    "returns remains begins ends grows falls stands runs rests waits joins parts settles gathers changes repeats often "
    "never always seldom again together apart slowly quickly"
)
_UNUSUAL: Final = (" naïve", " café", " →", " 🙂", " 東京", " —", " “so”", " 1.5", " don't", " Ελλάδα", " 👩\u200d🚀")
"""About one token in thirty is not ASCII, so that bytes and characters are told apart by every answer."""


def _write_tape() -> tuple[list[str], list[int]]:
    """Return tokens of a long text, and where in it sentences begin."""
    chance = random.Random(20)  # noqa: S311 - a fixed text, not a secret
    tape: list[str] = []
    starts: list[int] = []
    while len(tape) < 1 << 15:
        first = chance.choice(_WORDS).title()
        if chance.random() < 0.1:  # noqa: PLR2004 - one sentence in ten begins a paragraph
            tape += ["\n\n", first]
        else:
            starts.append(len(tape))
            tape.append(" " + first)
        for left in reversed(range(chance.randrange(3, 12))):
            tape.append(chance.choice(_UNUSUAL) if chance.random() < 1 / 25 else " " + chance.choice(_WORDS))
            if left and chance.random() < 1 / 12:
                tape.append(",")
        tape.append(".")
    return tape, starts


_TAPE, _STARTS = _write_tape()
_PIECE: Final = re.compile(r" ?\w{1,8}|.", re.DOTALL)
"""A token of a given text: up to eight letters or digits with the space before them, or any other single character.
CR and LF fall apart, and so do the parts of a joined emoji: a reader must cope with both."""


def digest(*parts: object) -> int:
    """Return 64 bits that depend on every part and its place."""
    return int.from_bytes(blake2b("\x00".join(map(str, parts)).encode(), digest_size=8).digest(), "big")


def write_text(number: int, tokens: int) -> list[str]:
    """Return the first so many tokens of the text that belongs to a digest; joined, they are the text."""
    opening = [_ADJECTIVES[number & 31].title(), " " + _NOUNS[number >> 5 & 31], ":"]
    start = _STARTS[(number >> 10) % len(_STARTS)]
    needed = tokens - len(opening)
    if needed < 0:
        return opening[:tokens]
    found = _TAPE[start : start + needed]
    while len(found) < needed:
        found += _TAPE[: needed - len(found)]
    return opening + found


def split_pieces(text: str, piece_chars: int | None = None) -> list[str]:
    """Return a text's tokens; joined, they are the text."""
    if piece_chars is not None:
        return [text[at : at + piece_chars] for at in range(0, len(text), piece_chars)]
    return _PIECE.findall(text)


def count_tokens(text: str) -> int:
    """Return how many tokens a text has. Linear: about 0.1 µs a token."""
    return len(_PIECE.findall(text))


def cut_at_stop(pieces: list[str], stop: tuple[str, ...]) -> tuple[list[str], str | None]:
    """Return the tokens before the first stop string, the last of them shortened if need be, and that string."""
    text = "".join(pieces)
    found = [(at, string) for string in stop if string and (at := text.find(string)) >= 0]
    if not found:
        return pieces, None
    end, string = min(found)
    kept: list[str] = []
    for piece in pieces:
        if len(piece) >= end:
            if end:
                kept.append(piece[:end])
            break
        kept.append(piece)
        end -= len(piece)
    return kept, string


def write_json(schema: dict[str, Any], number: int) -> str:
    """Return JSON text that fits a schema, a function of the schema and the digest."""
    return orjson.dumps(_sample(schema, schema, number, 0)).decode()


_DEEPEST: Final = 12
"""Levels after which only what a schema requires is written, so that a recursive one ends."""
_MOST_ITEMS: Final = 100
_LONGEST: Final = 10_000


def _sample(schema: Any, root: dict[str, Any], number: int, depth: int) -> Any:
    """Return a value that fits the parts of JSON Schema that tools and structured outputs use."""
    if not isinstance(schema, dict):
        return "value"
    if isinstance(reference := schema.get("$ref"), str):
        target: Any = root
        for step in reference.removeprefix("#").strip("/").split("/"):
            target = target.get(step, {}) if step and isinstance(target, dict) else target
        return _sample(target, root, number, depth + 1) if depth < _DEEPEST * 2 else None
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][number % len(schema["enum"])]
    for union in ("anyOf", "oneOf", "allOf"):
        if schema.get(union):
            return _sample(schema[union][-1 if depth >= _DEEPEST else 0], root, number, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = kind[0] if isinstance(kind, list) else kind
    return _sample_of(kind, schema, root, number, depth)


def _sample_of(kind: str, schema: dict[str, Any], root: dict[str, Any], number: int, depth: int) -> Any:
    match kind:
        case "object":
            properties = schema.get("properties", {})
            names = list(properties) if depth < _DEEPEST else [n for n in schema.get("required", ()) if n in properties]
            return {name: _sample(properties[name], root, digest(number, name), depth + 1) for name in names}
        case "array":
            count = min(_MOST_ITEMS, max(schema.get("minItems", 0), 0 if depth >= _DEEPEST else 1))
            return [_sample(schema.get("items", {}), root, digest(number, i), depth + 1) for i in range(count)]
        case _:
            return _scalar_of(kind, schema, number)


def _scalar_of(kind: str, schema: dict[str, Any], number: int) -> Any:
    match kind:
        case "integer":
            low = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
            return low + number % max(1, min(schema.get("maximum", low + 99), low + 99) - low + 1)
        case "number":
            low = schema.get("minimum", 0)
            return low + (schema.get("maximum", low + 1) - low) * ((number >> 8) % 8) / 8
        case "boolean":
            return bool(number & 1)
        case "null":
            return None
        case _:
            text = _NOUNS[number % len(_NOUNS)]
            return text.ljust(min(_LONGEST, schema.get("minLength", 0)), "x")[: schema.get("maxLength")]
