"""What can be wrong with a configuration, said so that it can be put right and shows no secret."""

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_core import ErrorDetails
from typing_extensions import override

from service.config.keys import SHORTEST_KEY, looks_like_a_key
from service.config.sections import Settings

ENV_PREFIX = "LLM_API_"
ENV_DELIMITER = "__"
_LONGEST_SHOWN = 80


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong: which setting, what it got, what it takes. Holds nothing secret."""

    setting: str
    """As in the file: ``providers.openai.base_url``; or the name of a variable that is no setting."""
    got: str
    takes: str

    @property
    def variable(self) -> str:
        """The environment's name for the setting, or for the nearest part of it that has one."""
        return self.setting if self.setting.isupper() else environment_name(self.setting.split("."))

    @override
    def __str__(self) -> str:
        """Say it in one line."""
        name = self.setting if self.setting == self.variable else f"{self.setting} ({self.variable})"
        return f"{name}: got {self.got}; takes {self.takes}"


class ConfigError(Exception):
    """The configuration cannot be used. Names everything that was found wrong, one a line."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


def environment_name(path: Iterable[str | int]) -> str:
    """Name the variable for a setting; it stops where a name does not fit into one (``models.gpt-4o``)."""
    parts: list[str] = []
    for part in path:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(part)):
            break
        parts.append(str(part).upper())
    return ENV_PREFIX + ENV_DELIMITER.join(parts)


def problems_in(error: ValidationError) -> list[Problem]:
    """Translate Pydantic's findings."""
    return [_problem(details) for details in error.errors(include_url=False)]


def unknown_variable(name: str) -> Problem:
    """Report a variable with our prefix that is no setting."""
    near = difflib.get_close_matches(name.upper(), sorted(variables()), n=1, cutoff=0.6)
    return Problem(
        name,
        "a variable that is no setting",
        f"the name of a setting; did you mean {near[0]}?" if near else _ANY_SETTING,
    )


def variables() -> Iterator[str]:
    """Go through the variables of all settings outside maps, and ``LLM_API_CONFIG``."""
    yield f"{ENV_PREFIX}CONFIG"
    for path, _ in leaves(Settings):
        if "<name>" not in path:
            yield environment_name(path)


def leaves(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], type[BaseModel]]]:
    """Go through all settings below a section, each with the section that it stands in; ``<name>`` is a free name."""
    for name, field in model.model_fields.items():
        for kind in _members(field.annotation):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from leaves(kind, (*path, name))
            elif get_origin(kind) is dict and issubclass(get_args(kind)[1], BaseModel):
                yield from leaves(get_args(kind)[1], (*path, name, "<name>"))
            elif kind is not type(None):
                yield (*path, name), model


def shown(value: object) -> str:
    """Write a value that is not secret by its place, unless it looks like a secret that got there by mistake."""
    if value is None:
        return "nothing"
    if isinstance(value, dict | list | tuple | set):
        return f"{_kind_of(value)} of {len(value)}"
    text = str(value.value if isinstance(value, Enum) else value)
    if "://" in text and any(mark in text for mark in "@?#"):
        return "an address that is not shown, since it may hold a secret"
    if any(map(looks_like_a_key, re.split(r"[\s,/=]+", text))):
        return f"{_kind_of(value)} that is not shown, since it looks like a secret"
    if len(text) > _LONGEST_SHOWN:
        text = f"{text[:_LONGEST_SHOWN]}…"
    return repr(text) if isinstance(value, str) else text


_ANY_SETTING = "the name of a setting; they are listed in docs/configuration.md"


def _problem(details: ErrorDetails) -> Problem:
    path = [part for part in details["loc"] if part != "[key]"]
    setting = ".".join(map(str, _without_swapped_key(path)))
    value = details["input"]
    if details["type"] == "extra_forbidden":
        return Problem(setting, "a name that is no setting", _nearest(path))
    if details["type"] == "missing":
        return Problem(setting, "nothing", _described(path))
    got = _hidden(value) if _is_secret(path) and details["loc"][-1] != "[key]" else shown(value)
    return Problem(setting, got, _takes(details))


def _without_swapped_key(path: Sequence[str | int]) -> list[str | int]:
    """Cut a name short that is long enough to be the key, in case the two were given the wrong way round."""
    shown_path = list(path)
    if shown_path[:2] == ["auth", "keys"] and len(shown_path) > len(("auth", "keys")):
        name = str(shown_path[2])
        shown_path[2] = name if len(name) < SHORTEST_KEY else f"{name[:3]}…"
    return shown_path


def _takes(details: ErrorDetails) -> str:
    if details["type"] in ("model_type", "model_attributes_type", "dict_type", "dict_attributes_type"):
        return "a map of settings; in the environment, valid JSON"
    if details["type"] == "string_pattern_mismatch":
        return f"a text that matches {details['ctx']['pattern']}"
    message = details["msg"]
    for opening in ("Value error, ", "Input should be ", "Input should have "):
        message = message.removeprefix(opening)
    message = message.partition(", unable to parse")[0]
    return message[:1].lower() + message[1:]


def _nearest(path: Sequence[str | int]) -> str:
    section = next((kind for kind in _members(_type_at(path[:-1])) if hasattr(kind, "model_fields")), None)
    names = list(section.model_fields) if section else []
    near = difflib.get_close_matches(str(path[-1]), names, n=1, cutoff=0.6)
    if near:
        return f"one of {', '.join(names)}; did you mean {near[0]}?"
    return f"one of {', '.join(names)}" if names else _ANY_SETTING


def _described(path: Sequence[str | int]) -> str:
    for kind in _members(_type_at(path)):
        if isinstance(kind, type) and issubclass(kind, Enum):
            return " or ".join(repr(member.value) for member in kind)
    section = next((kind for kind in _members(_type_at(path[:-1])) if hasattr(kind, "model_fields")), None)
    description = section.model_fields[str(path[-1])].description if section else None
    return f"a value: {description.splitlines()[0].rstrip('.')}" if description else "a value"


def _hidden(value: object) -> str:
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, str):
        return f"a text of {len(value)} characters (not shown)" if value else "an empty text"
    return "nothing" if value is None else f"{_kind_of(value)} (not shown)"


def _kind_of(value: object) -> str:
    match value:
        case str():
            return "a text"
        case bool():
            return "a truth value"
        case int() | float():
            return "a number"
        case dict():
            return "a map"
        case list() | tuple() | set():
            return "a list"
        case _:
            return "a value"


def _is_secret(path: Sequence[str | int]) -> bool:
    """Whether a value at this place may hold a secret; a place that we do not know may."""
    kind = _type_at(path)
    return kind is None or _holds_secret(kind)


def _holds_secret(kind: Any) -> bool:
    if kind is SecretStr:
        return True
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return any(_holds_secret(field.annotation) for field in kind.model_fields.values())
    return any(_holds_secret(part) for part in get_args(kind) if part is not ...)


def _type_at(path: Sequence[str | int]) -> Any:
    """Find the annotation at a place in the settings; None where there is none."""
    kind: Any = Settings
    for part in path:
        kind = next((found for member in _members(kind) if (found := _step(member, part)) is not None), None)
        if kind is None:
            return None
    return kind


def _step(kind: Any, part: str | int) -> Any:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        field = kind.model_fields.get(str(part))
        return field.annotation if field else None
    if get_origin(kind) is dict:
        return get_args(kind)[1]
    if get_origin(kind) in (tuple, frozenset) and isinstance(part, int):
        return get_args(kind)[0]
    return None


def _members(kind: Any) -> Iterator[Any]:
    """Go through the members of a union, looking through ``Annotated``."""
    if get_origin(kind) is Annotated:
        yield from _members(get_args(kind)[0])
    elif get_origin(kind) in (Union, UnionType):
        for member in get_args(kind):
            yield from _members(member)
    else:
        yield kind
