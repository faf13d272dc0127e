"""Reads recorded traffic: the published formats of Azure LLM inference, BurstGPT and Mooncake.

The data sets themselves are not shipped; `sample_trace.py` makes the one that is. Times become seconds from a trace's
first request. A line that cannot be read is an error that names it: a trace that lost rows is another load.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from load.arrivals import Arrival

TraceFormat = Literal["azure", "burstgpt", "mooncake"]


class TraceError(ValueError):
    """A trace that cannot be read; its text names file, line, and what is expected there."""


def read_trace(path: Path, form: TraceFormat) -> list[Arrival]:
    """Return a trace's requests in order of time, the first at 0 s.

    Raises TraceError for a file that cannot be opened, a line that is not in the format, or a trace without requests.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            found = sorted(READERS[form](path, lines), key=lambda row: row.at_s)
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}: name a file that can be read in arrivals.path") from error
    except UnicodeDecodeError as error:
        raise TraceError(f"{path}: not UTF-8 text at byte {error.start}: unpack it if it is compressed") from error
    if not found:
        raise TraceError(f"{path}: no requests in it: is arrivals.format right ({form})?")
    first_s = found[0].at_s
    return [Arrival(row.at_s - first_s, row.input_tokens, row.output_tokens, row.prefix) for row in found]


def _azure(path: Path, lines: Iterator[str]) -> Iterator[Arrival]:
    """Read `TIMESTAMP,ContextTokens,GeneratedTokens`; times are dates with seven decimals of a second."""
    for number, row in _rows(path, lines, ("TIMESTAMP", "ContextTokens", "GeneratedTokens")):
        with _line(path, number):
            at = datetime.fromisoformat(row["TIMESTAMP"].strip())
            # Without a zone it is UTC: in local time a trace would jump by an hour twice a year.
            at_s = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
            yield Arrival(at_s, _tokens(row["ContextTokens"]), _tokens(row["GeneratedTokens"]))


def _burstgpt(path: Path, lines: Iterator[str]) -> Iterator[Arrival]:
    """Read BurstGPT's columns; a response of no tokens was a failure of the recorded service.

    Such rows are asked all the same, since their callers did: the answer's length is then the scenario's.
    """
    for number, row in _rows(path, lines, ("Timestamp", "Request tokens", "Response tokens")):
        with _line(path, number):
            answer = _tokens(row["Response tokens"])
            yield Arrival(float(row["Timestamp"]), _tokens(row["Request tokens"]), answer or None)


def _mooncake(path: Path, lines: Iterator[str]) -> Iterator[Arrival]:
    """Read one JSON object a line; times are milliseconds, and hash_ids name the blocks of 512 tokens of a prompt."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        with _line(path, number):
            row: Mapping[str, Any] = json.loads(line)
            prefix = tuple(int(block) for block in row.get("hash_ids", ()))
            at_s = float(row["timestamp"]) / 1000
            yield Arrival(at_s, _tokens(row["input_length"]), _tokens(row["output_length"]), prefix)


READERS: Final[dict[TraceFormat, Callable[[Path, Iterator[str]], Iterator[Arrival]]]] = {
    "azure": _azure,
    "burstgpt": _burstgpt,
    "mooncake": _mooncake,
}


class _line:  # noqa: N801 - reads as a statement
    """Turn what a malformed line raises into an error that names the line."""

    def __init__(self, path: Path, number: int) -> None:
        self._where = f"{path}: line {number}"

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, KeyError):
            raise TraceError(f"{self._where}: {error} is missing") from error
        if isinstance(error, ValueError | TypeError | AttributeError):
            raise TraceError(f"{self._where}: {error}: mend or remove the line") from error


def _rows(path: Path, lines: Iterator[str], needed: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    reader = csv.DictReader(lines)
    missing = [name for name in needed if name not in (reader.fieldnames or ())]
    if missing:
        raise TraceError(f"{path}: line 1 has no column {', '.join(missing)}: is arrivals.format right?")
    for row in reader:
        yield reader.line_num, row


def _tokens(value: Any) -> int:
    tokens = int(value)
    if tokens < 0:
        raise ValueError(f"{tokens} is not a number of tokens")
    return tokens
