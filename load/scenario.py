"""What a run is: arrivals, mix, sizes and objectives, from a YAML file. Nothing here knows a clock or a socket."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from load.arrivals import Arrival, Segment, evenly, length_of, randomly, replayed, schedule
from load.traces import TraceFormat, read_trace

Route = Literal["generate", "stream", "chat", "chat_stream", "socket", "jobs_poll", "jobs_stream", "v1", "v1_stream"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Metric = Literal["ttft_s", "itl_s", "tpot_s", "e2e_s", "failed_ratio", "goodput_ratio", "stalled_ratio"]
RATIOS = frozenset({"failed_ratio", "goodput_ratio", "stalled_ratio"})
"""Of all requests asked; the others are distributions, of which a percentile is held to the bound."""


class ScenarioError(ValueError):
    """A scenario that cannot be run; its text names each field and the remedy."""


class Part(BaseModel):
    """A piece of a scenario: an unknown field is an error, most often a misspelt name."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Constant(Part):
    """Equal gaps."""

    kind: Literal["constant"]
    rate_per_s: Positive
    duration_s: Positive


class Poisson(Part):
    """Independent callers: exponential gaps, the same for the same seed."""

    kind: Literal["poisson"]
    rate_per_s: Positive
    duration_s: Positive
    seed: int = 0


class Step(Part):
    """A time of one rate; 0 is a pause."""

    rate_per_s: NotNegative
    duration_s: Positive


class Steps(Part):
    """Rates one after the other."""

    kind: Literal["steps"]
    steps: Annotated[tuple[Step, ...], Field(min_length=1)]
    process: Literal["constant", "poisson"] = "poisson"
    seed: int = 0


class Spike(Part):
    """A rate, and another for a while."""

    kind: Literal["spike"]
    rate_per_s: Positive
    duration_s: Positive
    spike_rate_per_s: Positive
    spike_at_s: NotNegative
    spike_duration_s: Positive
    process: Literal["constant", "poisson"] = "poisson"
    seed: int = 0

    @model_validator(mode="after")
    def _within(self) -> Self:
        if self.spike_at_s + self.spike_duration_s > self.duration_s:
            raise ValueError("the spike ends after the run: lengthen duration_s, or shorten the spike")
        return self


class Trace(Part):
    """Recorded traffic, its times and sizes."""

    kind: Literal["trace"]
    path: Path
    """Relative to the scenario's file."""
    format: TraceFormat
    speed: Positive = 1.0
    """2 replays it in half of its time."""
    duration_s: Positive | None = None
    """Of the run; without it, all of the trace."""


class ConcurrencyStep(Part):
    """A time with one number of users, each of whom asks again when answered."""

    concurrency: Annotated[int, Field(ge=1)]
    duration_s: Positive


class Closed(Part):
    """A sweep over concurrency. Callers who wait for each other hide queueing: not for latency objectives."""

    kind: Literal["closed"]
    steps: Annotated[tuple[ConcurrencyStep, ...], Field(min_length=1)]
    seed: int = 0


Arrivals = Annotated[Constant | Poisson | Steps | Spike | Trace | Closed, Field(discriminator="kind")]


class Length(Part):
    """A number of tokens: log-normal around its median, as texts are; a spread of 0 makes all of them alike."""

    median: Annotated[int, Field(ge=1)]
    spread: NotNegative = 0.0
    """Standard deviation of the logarithm."""
    max: Annotated[int, Field(ge=1)] = 4_096


class Bounds(Part):
    """What one request must keep to count for goodput, beside ending well; a bound left out is none."""

    ttft_s: Positive | None = None
    tpot_s: Positive | None = None
    e2e_s: Positive | None = None
    max_gap_s: Positive | None = None


class Objective(Part):
    """What the run as a whole must hold."""

    name: str | None = None
    metric: Metric
    percentile: Annotated[float, Field(gt=0, le=100)] | None = None
    bound: NotNegative
    """The most in seconds, or as a share; for `goodput_ratio` the least."""
    routes: Annotated[tuple[Route, ...], Field(min_length=1)] | None = None
    """Without it, all."""

    @model_validator(mode="after")
    def _percentile_where_it_belongs(self) -> Self:
        if (self.percentile is None) != (self.metric in RATIOS):
            remedy = "leave percentile out" if self.metric in RATIOS else "give a percentile, such as 99"
            raise ValueError(f"{self.metric}: {remedy}")
        if self.metric in RATIOS and self.bound > 1:
            raise ValueError(f"{self.metric} is a share: give a bound from 0 to 1")
        return self

    @property
    def label(self) -> str:
        """Its name, or one made of what it asks."""
        if self.name is not None:
            return self.name
        percentile = "" if self.percentile is None else f" p{self.percentile:g}"
        return f"{self.metric}{percentile}{' ' + '+'.join(self.routes) if self.routes else ''}"


class Scenario(Part):
    """One run."""

    name: Annotated[str, Field(min_length=1)]
    host: str | None = None
    """Base address of the service; `--host` beats it."""
    model: str = "gpt-4o-mini"
    """Asked for by every request; `{output_tokens}` in it is replaced, for a simulator's directives."""
    arrivals: Arrivals
    mix: Annotated[dict[Route, NotNegative], Field(min_length=1)]
    """Route → weight."""
    input_tokens: Length = Length(median=64)
    output_tokens: Length = Length(median=64)
    """Asked for as `max_tokens`. A trace's own sizes beat both."""
    timeout_s: Positive = 120.0
    """After its intended time a request that has not ended is given up, and has failed."""
    stall_s: Positive = 1.0
    """A gap between contents longer than this is a stall."""
    finish_reasons: Annotated[tuple[str, ...], Field(min_length=1)] = ("stop", "length")
    """Any other is a failure."""
    goodput: Bounds = Bounds()
    slo: tuple[Objective, ...] = ()

    @model_validator(mode="after")
    def _something_is_asked(self) -> Self:
        if not any(self.mix.values()):
            raise ValueError("mix: all weights are 0: give one route a weight")
        return self

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The objectives, and unless the scenario says how many may fail: none may."""
        if any(objective.metric == "failed_ratio" for objective in self.slo):
            return self.slo
        return (*self.slo, Objective(metric="failed_ratio", bound=0.0))

    @property
    def duration_s(self) -> float:
        """Seconds in which requests are sent."""
        arrivals = self.arrivals
        if isinstance(arrivals, Closed):
            return math.fsum(step.duration_s for step in arrivals.steps)
        if isinstance(arrivals, Trace):
            if arrivals.duration_s is not None:
                return arrivals.duration_s
            return _rows(arrivals)[-1].at_s / arrivals.speed
        return length_of(_segments(arrivals))

    def schedule(self) -> Iterator[Arrival]:
        """Give all arrivals in order; none for a closed loop, whose users decide. Raises TraceError."""
        arrivals = self.arrivals
        if isinstance(arrivals, Closed):
            return iter(())
        if isinstance(arrivals, Trace):
            return replayed(_rows(arrivals), speed=arrivals.speed, duration_s=arrivals.duration_s)
        if isinstance(arrivals, Poisson) or (isinstance(arrivals, Steps | Spike) and arrivals.process == "poisson"):
            return schedule(_segments(arrivals), randomly(arrivals.seed))
        return schedule(_segments(arrivals), evenly())


def _segments(arrivals: Constant | Poisson | Steps | Spike) -> list[Segment]:
    if isinstance(arrivals, Steps):
        return [Segment(step.rate_per_s, step.duration_s) for step in arrivals.steps]
    if isinstance(arrivals, Spike):
        after_s = arrivals.duration_s - arrivals.spike_at_s - arrivals.spike_duration_s
        return [
            Segment(arrivals.rate_per_s, arrivals.spike_at_s),
            Segment(arrivals.spike_rate_per_s, arrivals.spike_duration_s),
            Segment(arrivals.rate_per_s, after_s),
        ]
    return [Segment(arrivals.rate_per_s, arrivals.duration_s)]


def _rows(trace: Trace) -> list[Arrival]:
    return read_trace(trace.path, trace.format)


def read_scenario(
    path: Path, *, rate_per_s: float | None = None, duration_s: float | None = None, concurrency: int | None = None
) -> Scenario:
    """Read a scenario, with what the command line says instead of the file.

    Raises ScenarioError, which names the fields, and TraceError.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ScenarioError(f"{path}: {error.strerror}: name a file that can be read with --scenario") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{path}: not YAML: {error}") from error
    if not isinstance(tree, dict) or not isinstance(tree.get("arrivals", {}), dict):
        raise ScenarioError(f"{path}: a mapping with name, arrivals and mix is expected: see docs/load.md")
    _override(tree, {"rate_per_s": rate_per_s, "duration_s": duration_s}, concurrency)
    arrivals = tree.get("arrivals", {})
    if isinstance(arrivals.get("path"), str):
        arrivals["path"] = str(path.parent / arrivals["path"])
    scenario = from_tree(tree, str(path))
    if isinstance(scenario.arrivals, Trace):
        _rows(scenario.arrivals)
    return scenario


def from_tree(tree: Any, source: str) -> Scenario:
    """Make a scenario of what YAML or JSON holds. Raises ScenarioError."""
    try:
        return Scenario.model_validate(tree)
    except ValidationError as error:
        faults = "\n".join(f"  {_fault(fault)}" for fault in error.errors())
        raise ScenarioError(f"{source}:\n{faults}") from error


def _override(tree: dict[str, Any], given: dict[str, float | None], concurrency: int | None) -> None:
    arrivals = tree.setdefault("arrivals", {})
    kind = arrivals.get("kind")
    fitting = {"rate_per_s": {"constant", "poisson"}, "duration_s": {"constant", "poisson", "trace"}}
    for field, value in given.items():
        if value is not None:
            if kind not in fitting[field]:
                option = field.partition("_")[0]
                raise ScenarioError(
                    f"--{option} goes with arrivals of kind {', '.join(sorted(fitting[field]))}, not {kind}"
                )
            arrivals[field] = value
    if concurrency is not None:
        if kind != "closed":
            raise ScenarioError(f"--concurrency goes with arrivals of kind closed, not {kind}")
        steps = arrivals.get("steps") or [{}]
        arrivals["steps"] = [{"concurrency": concurrency, "duration_s": steps[0].get("duration_s")}]


def _fault(fault: Any) -> str:
    parts = fault["loc"]
    if parts[:1] == ("arrivals",):
        parts = (*parts[:1], *parts[2:])  # the kind stands second, as the union's tag, but not in the file
    place = ".".join(map(str, parts)) or "scenario"
    if fault["type"] == "extra_forbidden":
        return f"{place}: no such field: remove it, or mend its name (docs/load.md lists them)"
    if fault["type"] == "missing":
        return f"{place}: is missing: give it a value"
    return f"{place}: {fault['msg'].removeprefix('Value error, ')} (given: {str(fault['input'])[:80]})"
