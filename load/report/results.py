"""What a run has written, ``run.json`` and the requests beside it, read into types; knows no picture and no page."""

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from load.measures import COMPLETED
from load.results import VERSION

PROBLEMS_SHOWN = 5


class BadResults(Exception):  # noqa: N818 - it reads as what happened
    """A file is not what a run writes; the message names the file, the field and the remedy."""


class _Part(BaseModel):
    # What a newer run adds is passed over; what it takes away or renames raises the version.
    model_config = ConfigDict(frozen=True, extra="ignore")


class Distribution(_Part):
    """Percentiles in seconds; None where there was nothing to measure."""

    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    max: float | None = None
    mean: float | None = None


class Generator(_Part):
    """How well the load was made."""

    workers: int = 1
    schedule_delay_s: Distribution
    asked: int = Field(ge=0)
    """Requests that were due."""
    sent: int = Field(ge=0)
    achieved_ratio: float | None


class Validity(_Part):
    """Whether the run says anything about the service."""

    valid: bool
    reasons: tuple[str, ...] = ()


class Objective(_Part):
    """One bound of the scenario, and what was measured."""

    name: str
    metric: str
    percentile: float | str | None = None
    bound: float
    value: float | None
    held: bool


class Slo(_Part):
    """All of them."""

    held: bool
    results: tuple[Objective, ...] = ()


class Route(_Part):
    """What became of the requests on one route."""

    asked: int
    completed: int
    failed: dict[str, int] = {}
    cut: int = 0
    ttft_s: Distribution = Distribution()
    itl_s: Distribution = Distribution()
    tpot_s: Distribution = Distribution()
    e2e_s: Distribution = Distribution()
    stalls: int = 0
    output_tokens: int = 0


class Goodput(_Part):
    """Requests that were answered whole and within every bound: each second, and as a share of those asked."""

    per_s: float
    ratio: float | None


class Second(_Part):
    """One second of the run, by the time at which requests were due."""

    t_s: float
    asked: int = 0
    sent: int = 0
    completed: int = 0
    failed: int = 0
    in_flight: int = 0
    goodput: float = 0
    ttft_s: Distribution = Distribution()
    e2e_s: Distribution = Distribution()
    itl_s: Distribution = Distribution()
    schedule_delay_p50_s: float | None = None


class Request(_Part):
    """One request; times are seconds since the run began."""

    route: str
    outcome: str
    intended_s: float
    sent_s: float | None = None
    first_s: float | None = None
    last_s: float | None = None
    end_s: float | None = None
    output_tokens: int | None = None
    max_gap_s: float | None = None

    @property
    def ttft_s(self) -> float | None:
        """From when it should have been sent to its first content."""
        return None if self.first_s is None else self.first_s - self.intended_s

    @property
    def e2e_s(self) -> float | None:
        """From when it should have been sent to its end; None unless it was answered whole: a refusal is quick."""
        return None if self.end_s is None or self.outcome != COMPLETED else self.end_s - self.intended_s

    @property
    def tpot_s(self) -> float | None:
        """Time for each token after the first, of what was answered whole; undefined for a single one."""
        if self.first_s is None or self.last_s is None or self.outcome != COMPLETED or (self.output_tokens or 0) <= 1:
            return None
        return (self.last_s - self.first_s) / ((self.output_tokens or 0) - 1)


class Run(_Part):
    """A whole run."""

    version: int
    scenario: dict[str, Any]
    started_at: datetime
    duration_s: float = Field(gt=0)
    generator: Generator
    validity: Validity
    slo: Slo
    routes: dict[str, Route]
    goodput: Goodput
    timeline: tuple[Second, ...] = ()
    requests: str | None = None
    """The name of the file of requests, beside this one."""

    @property
    def name(self) -> str:
        """Of the scenario."""
        return str(self.scenario.get("name") or "load")

    @property
    def asked_per_s(self) -> float:
        """The rate at which requests were due."""
        return self.generator.asked / self.duration_s

    @property
    def passed(self) -> bool:
        """Whether it is valid and every bound held."""
        return self.validity.valid and self.slo.held


def read_run(path: Path) -> Run:
    """Read ``run.json``; raise ``BadResults`` where it is not one."""
    tree = _json(path)
    version = tree.get("version") if isinstance(tree, dict) else None
    if version != VERSION:
        raise BadResults(f"{path}: version is {version!r}, and {VERSION} is read here. Name a run.json of `locust`.")
    try:
        return Run.model_validate(tree)
    except ValidationError as error:
        raise BadResults(f"{path}: {_fields(error)}. Run the scenario again to write it anew.") from None


def read_requests(path: Path, run: Run) -> list[Request]:
    """Read the requests of a run, an empty list where it kept none; raise ``BadResults`` on a line that is none."""
    if run.requests is None:
        return []
    beside = path.parent / run.requests
    if beside.resolve().parent != path.parent.resolve():
        raise BadResults(f"{path}: requests is {run.requests!r}: it must be the name of a file beside this one.")
    return list(_lines(beside))


def _lines(path: Path) -> Iterator[Request]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield Request.model_validate_json(line)
                except ValidationError as error:
                    raise BadResults(f"{path}:{number}: {_fields(error)}. Copy the file of requests whole.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadResults(f"{path} cannot be read: {error}. Keep it beside its run.json.") from error


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadResults(f"{path} cannot be read: {error}. Name the run.json of a run.") from error
    except ValueError as error:
        raise BadResults(f"{path} is not JSON: {error}. Name the run.json of a run that ended.") from error


def _fields(error: ValidationError) -> str:
    found = [
        f"{'.'.join(str(part) for part in item['loc']) or 'the line'}: {item['msg'].lower()}" for item in error.errors()
    ]
    return "; ".join(found[:PROBLEMS_SHOWN])
