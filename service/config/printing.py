"""Settings as people and tools read them: the effective ones without secrets, a JSON Schema, a table."""

import json
from enum import Enum

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from service.config.problems import environment_name, leaves
from service.config.sections import Settings


def effective_yaml(settings: Settings) -> str:
    """Write all settings in the form of the file; each secret is a row of asterisks."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def json_schema() -> str:
    """Write the JSON Schema of the file, for editors and for charts."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Settings.model_json_schema(),
        "title": "llm-api settings",
    }
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def reference_table() -> str:
    """Write a Markdown table of all settings, with their variables, defaults and meanings."""
    lines = ["| setting | variable | default | meaning |", "|---|---|---|---|"]
    for path, section in leaves(Settings):
        variable = environment_name(part.replace("<name>", "NAME") for part in path)
        meaning = (section.model_fields[path[-1]].description or "").replace("\n", " ").replace("``", "`")
        lines.append(f"| `{'.'.join(path)}` | `{variable}` | {_default(section, path[-1])} | {meaning} |")
    return "\n".join(lines) + "\n"


def _default(section: type[BaseModel], name: str) -> str:
    value = section.model_fields[name].default
    if value is PydanticUndefined:
        return "needed"
    if value is None or value in ((), {}):
        return ""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, tuple | frozenset):
        value = ", ".join(sorted(value))
    return f"`{json.dumps(value) if isinstance(value, bool) else value}`"
