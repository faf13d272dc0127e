"""What ``serve`` says once it listens."""

import json
import shlex

from service.config import Installed, Settings, load_settings
from service.serving.banner import banner, warnings

ADDRESS = "http://127.0.0.1:8000"


def settings(**environ: str) -> Settings:
    return load_settings({}, environ, installed=Installed(embedded_model=False, embedded_store=True))


def the_command(text: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith("try "))
    return shlex.split(line.removeprefix("try "))


def test_line_to_try_is_a_command_that_a_shell_understands() -> None:
    program, *arguments = the_command(banner(settings(), ADDRESS))
    assert program == "curl"
    assert f"{ADDRESS}/generate" in arguments
    assert json.loads(arguments[-1]) == {"prompt": "What is the capital of France?", "model": "gpt-4o-mini"}


def test_line_to_try_carries_a_key_only_where_one_is_needed() -> None:
    assert "Bearer" not in banner(settings(), ADDRESS)
    text = banner(settings(LLM_API_AUTH__KEYS="alice:alice-key-0123456789"), ADDRESS)
    assert "Authorization: Bearer YOUR_KEY" in the_command(text)
    assert "alice-key" not in text


def test_production_has_no_playground_and_no_notes() -> None:
    text = banner(
        settings(
            LLM_API_PROFILE="production", OPENAI_API_KEY="sk-one", LLM_API_AUTH__KEYS="alice:alice-key-0123456789"
        ),
        ADDRESS,
    )
    assert "playground" not in text
    assert "note" not in text


def test_development_without_a_model_says_that_answers_are_simulated() -> None:
    assert "simulated model" in banner(settings(), ADDRESS)
    assert "simulated model" not in banner(settings(OPENAI_API_KEY="sk-0123456789abcdef"), ADDRESS)


def test_development_without_a_store_says_what_is_lost() -> None:
    assert "end with this process" in banner(settings(), ADDRESS)
    assert "end with this process" not in banner(settings(REDIS_URL="redis://store"), ADDRESS)


def test_settings_that_do_less_than_they_seem_to_are_warned_of() -> None:
    assert warnings(settings(LLM_API_ADMISSION__QUEUE_MAX="9")) == []
    found = warnings(settings(LLM_API_AUTH__DEFAULT_LIMITS__USD_PER_DAY="5"))
    assert {warning.split()[0] for warning in found} == {
        "models.gpt-4o-mini",
        "models.gpt-4o",
        "models.claude-3-haiku-20240307",
    }


def test_production_without_a_store_is_told_that_it_takes_no_jobs() -> None:
    plain = {
        "LLM_API_PROFILE": "production",
        "OPENAI_API_KEY": "sk-0123456789abcdef",
        "LLM_API_AUTH__KEYS": "a:a-key-0123456789",
    }
    (warning,) = warnings(settings(**plain))
    assert "background jobs are refused" in warning
    assert warnings(settings(**plain, REDIS_URL="redis://store")) == []
