"""Nothing secret is ever shown."""

import json
import traceback
from pathlib import Path

import pytest

from service.config import ConfigError, Installed, effective_yaml, load_settings
from service.config.keys import LONGEST_NAME

CANARY = "canary-0123456789-canary"
NOTHING = Installed(embedded_model=False, embedded_store=False)

SECRET_PLACES = {
    "OPENAI_API_KEY": CANARY,
    "ANTHROPIC_API_KEY": CANARY,
    "REDIS_URL": f"redis://user:{CANARY}@store:6379/0",
    "LLM_API_AUTH__KEYS": f"alice:{CANARY}-a,bob:{CANARY}-b",
    "LLM_API_PROVIDERS__VLLM__KIND": "openai",
    "LLM_API_PROVIDERS__VLLM__KEYS": f"{CANARY}-1,{CANARY}-2",
}


def test_effective_settings_and_reprs_hide_every_secret() -> None:
    settings = load_settings({}, SECRET_PLACES, installed=NOTHING)
    for text in (effective_yaml(settings), repr(settings), str(settings), json.dumps(settings.model_dump(mode="json"))):
        assert "canary" not in text
        assert "**********" in text


LEAKS = [
    {**SECRET_PLACES, "LLM_API_SERVER__PORT": "x"},
    {"LLM_API_AUTH__KEYS": CANARY},
    {"LLM_API_AUTH__KEYS": f"{CANARY}:alice"},
    {"LLM_API_AUTH__KEYS": f"sk-{CANARY}:alice-0123456789-alice"},
    {"LLM_API_AUTH__KEYS": f"alice:{CANARY},bob:{CANARY}"},
    {"LLM_API_AUTH__KEYS": f"alice:{CANARY} with a space"},
    {"LLM_API_AUTH__KEYS": f'{{"alice": {{"key": "{CANARY}", "kye": "{CANARY}"}}}}'},
    {"LLM_API_AUTH__KEYS": f'{{"alice": {{"key": ["{CANARY}"]}}}}'},
    {"LLM_API_AUTH__KEYS": f'{{"{CANARY * 2}": "alice-0123456789-alice"}}'},
    {"LLM_API_AUTH__KEYS": f'["{CANARY}"]'},
    {"LLM_API_AUTH__KEYS": f'{{"alice": "{CANARY}"'},
    {"LLM_API_AUTH": f'{{"keys": "{CANARY}"'},
    {"LLM_API_PROVIDERS": f'{{"a": {{"kind": "openai", "keys": ["{CANARY}"]'},
    {"LLM_API_PROVIDERS": CANARY},
    {"LLM_API_PROVIDERS__A": CANARY},
    {"LLM_API_PROVIDERS__A__KIND": "openai", "LLM_API_PROVIDERS__A__KEY": CANARY},
    {"LLM_API_PROVIDERS__A__KIND": "openai", "LLM_API_PROVIDERS__A__KEYS": f"{CANARY} {CANARY}"},
    {"LLM_API_PROVIDERS__A__KIND": "openai", "LLM_API_PROVIDERS__A__KEYS": f"[{CANARY}"},
    {"LLM_API_PROVIDERS__A__KIND": "openai", "LLM_API_PROVIDERS__A__BASE_URL": f"http://u:{CANARY}@host/v1"},
    {"LLM_API_PROVIDERS__A__KIND": "openai", "LLM_API_PROVIDERS__A__BASE_URL": f"http://host/v1?key={CANARY}"},
    {"LLM_API_REDIS__URL": f"redus://:{CANARY}@store"},
    {"REDIS_URL": f"redis://:{CANARY}@store:notaport"},
    {"REDIS_URL": f"redis://:{CANARY}@store/0?{CANARY}={CANARY}"},
    {"LLM_API_REDIS": f"redis://:{CANARY}@store"},
    {"LLM_API_OPENAI_API_KEY": CANARY},
    {"LLM_API_SERVER__HOST": f"sk-{CANARY}", "LLM_API_SERVER__PORT": f"sk-{CANARY}"},
]


@pytest.mark.parametrize("environ", LEAKS, ids=range(len(LEAKS)))
def test_complaint_about_a_secret_does_not_show_it(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings({}, environ, installed=NOTHING)
    assert "canary" not in str(caught.value)
    assert "canary" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "text",
    [
        f"auth:\n  keys: {{alice: {CANARY}\nserver: 1",
        f"auth:\n  keys:\n    {CANARY * 2}: alice-0123456789-alice\n",
        f"auth:\n  keys:\n\talice: {CANARY}\n",
        f"auth: {{keys: {{alice: {CANARY}, alice: {CANARY}}}}}",
        f"auth: {{keys: *{CANARY}}}",
        f"auth: {{keys: !{CANARY} x}}",
    ],
)
def test_complaint_about_a_file_does_not_quote_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_settings({}, {"LLM_API_CONFIG": str(path)}, installed=NOTHING)
    assert "canary" not in "".join(traceback.format_exception(caught.value))


def test_names_are_shorter_than_keys_so_that_a_key_cannot_pass_for_one() -> None:
    assert len(f"sk-proj-{'x' * 40}") > LONGEST_NAME
