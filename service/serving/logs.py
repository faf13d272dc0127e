"""How log lines look and where they go: to the standard error, one a line, JSON in production."""

import json
import logging
import re
from datetime import UTC, datetime

import orjson
from typing_extensions import override

from service.config import Profile

QUIET = ("httpx", "httpx2", "openai", "anthropic")
"""Libraries that log each call of theirs, addresses included."""

REFUSED_HANDSHAKE = "ASGI callable returned without completing handshake."
"""What uvicorn 0.54 calls an error whenever a WebSocket is refused: anybody could fill the log with it."""
HANDSHAKE_LINE = '"WebSocket %s"'
"""What is in uvicorn's line on a handshake, with the query and so a ticket. Our access log has a line of its own."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}
"""What every record has (and what uvicorn adds for terminals); anything else was given as ``extra``."""

_UNSAFE = re.compile("[\\x7f-\\x9f\\u2028\\u2029]")
"""What JSON lets stand in a text, and some readers and terminals take for the end of a line or for a command."""


class Handshakes(logging.Filter):
    """Drops what uvicorn says of WebSockets' handshakes."""

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        return record.msg != REFUSED_HANDSHAKE and HANDSHAKE_LINE not in str(record.msg)


def configure_logging(profile: Profile) -> None:
    """Set the process's logging up."""
    handler = logging.StreamHandler()
    handler.setFormatter(TextFormatter() if profile is Profile.DEVELOPMENT else JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("uvicorn.error").addFilter(Handshakes())
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


class TextFormatter(logging.Formatter):
    """For people: time, level, logger, message, and the ``extra`` fields as ``name=value``."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        moment = f"{datetime.fromtimestamp(record.created):%H:%M:%S.%f}"[:-3]  # noqa: DTZ006 - on the reader's clock
        fields = "".join(f" {name}={json.dumps(value, default=str)}" for name, value in extra_fields(record).items())
        line = f"{moment} {record.levelname:<7} {record.name}: {record.getMessage()}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """For programs: one JSON object a line, whatever stands in the message."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **extra_fields(record),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        line = orjson.dumps(fields, default=str).decode()
        return line if line.isprintable() else _UNSAFE.sub(_escaped, line)


def _escaped(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def extra_fields(record: logging.LogRecord) -> dict[str, object]:
    """Return what was given as ``extra``."""
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}
