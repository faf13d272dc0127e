"""How log lines look."""

import inspect
import json
import logging
import sys

import pytest
from uvicorn.protocols.websockets import websockets_sansio_impl

from service.serving.logs import HANDSHAKE_LINE, REFUSED_HANDSHAKE, Handshakes, JsonFormatter, TextFormatter


def record(message: str, *arguments: object, **extra: object) -> logging.LogRecord:
    made = logging.getLogger("service.access").makeRecord(
        "service.access", logging.INFO, "file", 1, message, arguments, None, extra=extra
    )
    made.created = 1_800_000_000.1234
    return made


def test_text_line_shows_the_extra_fields() -> None:
    line = TextFormatter().format(record("%s done", "request", status=200, route="/generate", note="two words"))
    assert line.endswith('INFO    service.access: request done status=200 route="/generate" note="two words"')


def test_json_line_is_one_object_on_one_line_whatever_stands_in_it() -> None:
    line = JsonFormatter().format(record("a\nb\u2028%s", '"c"', status=200))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2027-01-15T08:00:00.123+00:00",
        "level": "info",
        "logger": "service.access",
        "message": 'a\nb\u2028"c"',
        "status": 200,
    }


def test_exception_goes_with_its_line() -> None:
    made = record("failed")
    try:
        int("why")
    except ValueError:
        made.exc_info = sys.exc_info()
    assert "ValueError: invalid literal" in json.loads(JsonFormatter().format(made))["exception"]
    assert TextFormatter().format(made).endswith("'why'")


def test_refused_handshakes_are_no_errors() -> None:
    assert REFUSED_HANDSHAKE in inspect.getsource(websockets_sansio_impl), "uvicorn says it in other words now"
    assert not Handshakes().filter(record(REFUSED_HANDSHAKE))
    assert Handshakes().filter(record("Exception in ASGI application"))


@pytest.mark.parametrize("outcome", ["[accepted]", "403", "%d"])
def test_lines_with_a_handshakes_query_are_dropped(outcome: str) -> None:
    line = f'%s - "WebSocket %s" {outcome}'
    assert HANDSHAKE_LINE in line
    assert line in inspect.getsource(websockets_sansio_impl), "uvicorn says it in other words now"
    assert not Handshakes().filter(record(line, "127.0.0.1:1", "/ws?ticket=secret"))


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x9b", "\x7f", "\n"])
def test_no_text_ends_a_line_or_moves_a_cursor(character: str) -> None:
    text = f"a{character}b"
    line = JsonFormatter().format(record(f"{text}%s", "x", user=text))
    assert line.isprintable()
    assert json.loads(line)["user"] == text
