"""The documents about settings say what the code says."""

import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from service.config import Settings, json_schema, reference_table
from service.config.problems import leaves

DOCS = Path(__file__).parents[3] / "docs"


def test_schema_in_the_documentation_is_current() -> None:
    assert (DOCS / "configuration.schema.json").read_text("utf-8") == json_schema(), (
        "run `llm-api check --schema > docs/configuration.schema.json`"
    )


def test_table_in_the_documentation_is_current() -> None:
    assert reference_table() in (DOCS / "configuration.md").read_text("utf-8"), (
        "put what `llm-api check --table` prints into docs/configuration.md"
    )


def test_every_setting_says_what_it_does() -> None:
    silent = [".".join(path) for path, section in leaves(Settings) if not section.model_fields[path[-1]].description]
    assert silent == []


def test_every_section_says_what_it_is_for() -> None:
    def sections(model: type[BaseModel]) -> set[type[BaseModel]]:
        return {section for _, section in leaves(model)}

    assert all(section.__doc__ for section in sections(Settings))


def test_examples_in_the_documentation_are_valid_settings() -> None:
    text = (DOCS / "configuration.md").read_text("utf-8")
    examples: list[dict[str, Any]] = [yaml.safe_load(part.split("```")[0]) for part in text.split("```yaml\n")[1:]]
    assert examples
    for example in examples:
        Settings.model_validate(example)


def test_schema_describes_the_short_form_of_keys() -> None:
    keys = json.loads(json_schema())["$defs"]["AuthSettings"]["properties"]["keys"]
    assert {"object", "string"} <= {option.get("type") for option in keys["anyOf"]}
