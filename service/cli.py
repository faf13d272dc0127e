"""The ``llm-api`` command: one function for each sub-command, no logic."""
# ruff: noqa: T201 - printing is what a command does

import argparse
import asyncio
import getpass
import importlib
import json
import logging
import math
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from service import __version__
from service.auth.keys import hash_key, new_key
from service.config import ConfigError, Problem, Settings, effective_yaml, json_schema, reference_table
from service.config.keys import checked_key, is_key_name
from service.config.reload import SettingsSource
from service.errors import ServiceError
from service.serving.banner import warnings
from service.serving.logs import configure_logging
from service.serving.metrics_directory import metrics_directory
from service.serving.sockets import listen
from service.simulator import options as simulator_options

logger = logging.getLogger(__name__)

WRONG_SETTING = 2
"""Exit status where the configuration or the command line cannot be used; the same as argparse's."""
LONGEST_STEP_S = 86_400
STEPS_MAX = 2_000
"""Steps of one answer, as at ``GET /usage/capacity``."""
FIRST_YEAR, LAST_YEAR = 1970, 9998
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; give the exit status."""
    parsed = _parser().parse_args(arguments)
    try:
        status: int = parsed.run(parsed)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return WRONG_SETTING
    except ServiceError as error:
        # What we start ourselves did not start; its message says why.
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return status


def serve(parsed: argparse.Namespace) -> int:
    """Serve the API until told to stop."""
    source = _source(parsed)
    settings = source.load()
    configure_logging(settings.profile)
    for warning in warnings(settings):
        logger.warning(warning)
    with listen(settings.server) as listener:
        if settings.server.workers > 1:
            # The directory has to be named before anything that measures is imported.
            with metrics_directory() as directory:
                _module("service.serving.prefork").serve(settings, listener, source, directory)
        else:
            _module("service.serving.single").serve(settings, listener, source)
    return 0


def worker(parsed: argparse.Namespace) -> int:
    """Work on background jobs until told to stop. Serves /health, /ready and metrics, and nothing else."""
    # No endpoint has to notice its end, and one process is one worker.
    source = _source(parsed, {"jobs": {"worker": True}, "drain": {"delay_s": 0}, "server": {"workers": 1}})
    settings = source.load()
    if settings.redis.url is None:
        raise ConfigError([Problem("redis.url", "nothing", "the store in which `llm-api serve` puts the jobs")])
    configure_logging(settings.profile)
    with listen(settings.server) as listener:
        _module("service.serving.single").work(settings, listener, source)
    return 0


def usage(parsed: argparse.Namespace) -> int:
    """Print what was used, by whom, and what it cost."""
    settings = _source(parsed).load()
    command = _module("service.usage_command")
    until = parsed.until or datetime.now(UTC)
    since = parsed.since or until - timedelta(days=1)
    if since >= until:
        print("llm-api usage: --since has to be before --until", file=sys.stderr)
        return WRONG_SETTING
    if parsed.capacity is not None and (until - since).total_seconds() > STEPS_MAX * parsed.capacity:
        shortest = math.ceil((until - since).total_seconds() / STEPS_MAX)
        print(
            f"llm-api usage: --capacity {parsed.capacity} makes more than {STEPS_MAX} steps of this time: "
            f"take {shortest} or more, or a later --since",
            file=sys.stderr,
        )
        return WRONG_SETTING
    times = {"since": since.timestamp(), "until": until.timestamp()}
    if parsed.unusual:
        work = command.report_unusual(settings, as_json=parsed.json)
    elif parsed.capacity is not None:
        work = command.report_capacity(settings, **times, step_s=parsed.capacity, as_json=parsed.json)
    else:
        work = command.report(settings, **times, by=list(dict.fromkeys(parsed.by)), as_json=parsed.json)
    printed = asyncio.run(work)
    for line in printed.lines:
        print(line)
    if printed.warning is not None:
        print(f"llm-api usage: {printed.warning}", file=sys.stderr)
    return 0


def simulate(parsed: argparse.Namespace) -> int:
    """Run the simulated upstream until told to stop."""
    try:
        _module("service.simulator.server").serve(simulator_options.from_arguments(parsed))
    except (OSError, ValueError) as error:
        # An option out of its range, or an address that cannot be listened on.
        print(f"llm-api simulate: {error}", file=sys.stderr)
        return WRONG_SETTING
    return 0


def check(parsed: argparse.Namespace) -> int:
    """Validate the configuration and print the effective one, or what can be configured at all."""
    if parsed.schema:
        print(json_schema(), end="")
        return 0
    if parsed.table:
        print(reference_table(), end="")
        return 0
    try:
        settings = _source(parsed).load()
    except ConfigError as error:
        if not parsed.json:
            raise
        problems = [
            {"setting": problem.setting, "variable": problem.variable, "got": problem.got, "takes": problem.takes}
            for problem in error.problems
        ]
        print(json.dumps({"problems": problems}, ensure_ascii=False))
        return WRONG_SETTING
    if parsed.json:
        print(json.dumps({"settings": settings.model_dump(mode="json"), "warnings": warnings(settings)}))
        return 0
    print(effective_yaml(settings), end="")
    _warn(settings)
    return 0


def keys_new(parsed: argparse.Namespace) -> int:
    """Print a new key, and the line that makes it known."""
    key = new_key()
    print(f"key   {key}")
    print(f"line  {parsed.name}:{hash_key(key)}")
    return 0


def keys_hash(_: argparse.Namespace) -> int:
    """Read a key from the standard input and print what the settings take in its place."""
    key = (getpass.getpass("key: ") if sys.stdin.isatty() else sys.stdin.readline()).strip()
    try:
        checked_key(key)
    except ValueError as error:
        print(f"the key takes {error}", file=sys.stderr)
        return WRONG_SETTING
    print(hash_key(key))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llm-api",
        description="One production HTTP API in front of large language models.",
        epilog="Settings come from options, LLM_API_* variables and the YAML file named by LLM_API_CONFIG; "
        "`llm-api check` shows the effective ones.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"llm-api {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    command = commands.add_parser("serve", help="serve the API", description=serve.__doc__)
    _add_overrides(command)
    command.set_defaults(run=serve)

    command = commands.add_parser("worker", help="work on background jobs", description=worker.__doc__)
    _add_addresses(command)
    command.set_defaults(run=worker)

    command = commands.add_parser("simulate", help="run a simulated upstream", description=simulate.__doc__)
    simulator_options.add_arguments(command)
    command.set_defaults(run=simulate)

    command = commands.add_parser("usage", help="print usage and cost", description=usage.__doc__)
    command.add_argument("--since", type=_instant, help="first instant that counts, RFC 3339; a day before --until")
    command.add_argument("--until", type=_instant, help="first instant that does not, RFC 3339; now")
    command.add_argument(
        "--by",
        action="append",
        default=[],
        choices=("key", "user", "model", "provider", "day"),
        help="a line for each; may be repeated",
    )
    command.add_argument("--json", action="store_true", help="print one JSON object a line")
    command.add_argument(
        "--capacity",
        type=_step_s,
        metavar="SECONDS",
        help="print tokens and concurrency in steps of so many seconds instead",
    )
    command.add_argument("--unusual", action="store_true", help="print users whose last 24 hours are unusual instead")
    command.set_defaults(run=usage)

    command = commands.add_parser("check", help="validate the configuration and print it", description=check.__doc__)
    _add_overrides(command)
    command.add_argument("--json", action="store_true", help="print JSON, also of what is wrong")
    command.add_argument("--schema", action="store_true", help="print the JSON Schema of the file instead")
    command.add_argument("--table", action="store_true", help="print a table of all settings instead")
    command.set_defaults(run=check)

    keys = commands.add_parser("keys", help="make callers' keys", description="Make callers' keys.")
    actions = keys.add_subparsers(metavar="ACTION", required=True)
    command = actions.add_parser("new", help="make a key", description=keys_new.__doc__)
    command.add_argument("name", metavar="NAME", type=_key_name, help="whose key it is")
    command.set_defaults(run=keys_new)
    command = actions.add_parser("hash", help="hash a key read from the standard input", description=keys_hash.__doc__)
    command.set_defaults(run=keys_hash)
    return parser


def _add_overrides(command: argparse.ArgumentParser) -> None:
    _add_addresses(command)
    command.add_argument("--workers", help="processes (server.workers)")


def _add_addresses(command: argparse.ArgumentParser) -> None:
    # No types here: the settings validate, and say what they take.
    command.add_argument("--host", help="address to listen on (server.host)")
    command.add_argument("--port", help="port of the API; 0 takes a free one (server.port)")
    command.add_argument("--metrics-port", help="port of /metrics (server.metrics_port)")


def _module(name: str) -> Any:
    """Import what only one command needs: the application's libraries take seconds, which the others need not pay."""
    return importlib.import_module(name)


def _source(parsed: argparse.Namespace, fixed: Mapping[str, Mapping[str, Any]] | None = None) -> SettingsSource:
    """Make the source of settings; options and what is ``fixed`` come before all else."""
    overrides: dict[str, dict[str, Any]] = {section: dict(values) for section, values in (fixed or {}).items()}
    for name in ("host", "port", "metrics_port", "workers"):
        value = getattr(parsed, name, None)
        if value is not None:
            overrides.setdefault("server", {})[name] = value
    return SettingsSource(overrides, os.environ)


def _warn(settings: Settings) -> None:
    for warning in warnings(settings):
        print(f"warning: {warning}", file=sys.stderr)


def _instant(text: str) -> datetime:
    instant = None
    with suppress(ValueError):
        instant = datetime.fromisoformat(text)
    if instant is None or instant.tzinfo is None:
        raise argparse.ArgumentTypeError(f"takes a time with its offset, such as 2026-11-01T00:00:00Z, not {text!r}")
    if not FIRST_YEAR <= instant.year <= LAST_YEAR:
        raise argparse.ArgumentTypeError(f"takes a time of the years {FIRST_YEAR} to {LAST_YEAR}, not {text!r}")
    return instant


def _step_s(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= LONGEST_STEP_S:
        raise argparse.ArgumentTypeError(f"takes whole seconds, 1 to {LONGEST_STEP_S}, not {text!r}")
    return int(text)


def _key_name(text: str) -> str:
    if not is_key_name(text):
        raise argparse.ArgumentTypeError("takes up to 40 letters, digits, '.', '_' and '-'")
    return text
