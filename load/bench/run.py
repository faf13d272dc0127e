"""One run of the benchmark: starts all targets, measures them in turn, round by round, and makes the result."""

import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from load.bench import measure, startup, workers
from load.bench.figures import Figure, costs_of, figure, valid
from load.bench.measure import Rig
from load.bench.peers import MissingError
from load.bench.processes import pss_bytes
from load.bench.rig import build, clients, upstream
from load.bench.targets import BY_NAME, OWN, Live, Place
from load.bench.windows import Window, invalidity, is_rigs_fault

IDLE = (500, 2000)
FILES_PER_STREAM = 3
LATENCY_UNTIL_S = 720
"""Seconds after which no other target's latency is begun: the whole is to take 15 minutes at most."""
TRIES = 3
"""Of a window in which the rig was late."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    targets: Sequence[str]
    rounds: int
    scale: float
    """Of the windows' lengths."""
    idle: tuple[int, ...]
    latency_s: float
    latency_rounds: int
    time_s: float
    """No round is begun after so much time."""


@dataclass
class Run:
    """What is running, and what was found."""

    rig: Rig
    live: dict[str, Live] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    windows: list[Window] = field(default_factory=list)
    figures: dict[str, dict[str, Figure]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def take(self, measured: Callable[[], Window]) -> None:
        """Measure a window, again where the rig was late, and keep each; say so where it does not count."""
        for _ in range(TRIES):
            window = measured()
            self._keep(window)
            if not is_rigs_fault(window):
                return

    def _keep(self, window: Window) -> None:
        self.windows.append(window)
        reason = invalidity(window)
        if reason is not None:
            self.note(f"discarded: {window.target} {window.workload}: {reason}")

    def note(self, text: str) -> None:
        """Keep what a reader has to know, and say it."""
        self.notes.append(text)
        say(text)


def say(text: str) -> None:
    """Tell the person who waits."""
    print(text, file=sys.stderr, flush=True)


def cores() -> tuple[set[int] | None, set[int] | None]:
    """Return the core of the targets and those of the rig; None where there is but one."""
    mine = sorted(os.sched_getaffinity(0))
    return ({mine[0]}, set(mine[1:])) if len(mine) > 1 else (None, None)


def allow_files() -> int:
    """Raise the limit of open files as far as it goes; return it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def run(plan: Plan) -> dict[str, Any]:
    """Measure; return the result as its file has it."""
    began = time.monotonic()
    started_at = datetime.now(UTC)
    files = allow_files()
    target_cores, rig_cores = cores()
    program = build()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llm-api-bench-")))
        rig = Rig(stack.enter_context(upstream(program, rig_cores)), stack.enter_context(clients(program, rig_cores)))
        this = Run(rig)
        if target_cores is None:
            this.note("one core only: targets and rig share it, and latencies tell of both")
        place = _places(folder, rig, target_cores)
        own = this.figures.setdefault(OWN, {})
        own.update({name: figure([value]) for name, value in startup.start(next(place)).items()})
        _start(this, plan, place, stack, files)
        _rounds(this, plan, began)
        for name in this.live:
            this.figures.setdefault(name, {}).update(costs_of(this.windows, name))
        _latencies(this, plan, began)
        for name, live in this.live.items():
            if live.pid:
                this.figures[name]["end_mib"] = figure([pss_bytes(live.pid) / 2**20])
        if OWN in plan.targets:
            own.update(workers.scaling(rig, lambda count: place_of_workers(folder, rig, count), this.note))
    return _result(this, started_at, time.monotonic() - began)


def place_of_workers(folder: Path, rig: Rig, count: int) -> Place:
    """Make a place for so many workers, on any core."""
    below = folder / f"workers-{count}"
    below.mkdir(exist_ok=True)
    return Place(rig.upstream.address, below, None, count)


def _places(folder: Path, rig: Rig, target_cores: set[int] | None) -> Iterator[Place]:
    number = 0
    while True:
        number += 1
        below = folder / str(number)
        below.mkdir()
        yield Place(rig.upstream.address, below, target_cores)


def _start(this: Run, plan: Plan, place: Iterator[Place], stack: ExitStack, files: int) -> None:
    """Start each target, and measure its idle streams while it is fresh."""
    counts = tuple(count for count in plan.idle if FILES_PER_STREAM * count < files)
    if counts != plan.idle:
        this.note(f"only {files} files may be open: fewer idle streams (ulimit -n)")
    for name in plan.targets:
        target = BY_NAME[name]
        try:
            live = stack.enter_context(target.start(next(place)))
            measure.warm_up(this.rig, live)
        except MissingError as error:
            this.missing[name] = str(error)
            this.note(f"not measured: {target.label}: {error}")
            continue
        this.live[name] = live
        if live.pid and counts:
            say(f"{target.label}: idle streams")
            found = measure.idle(this.rig, live, counts)
            if (failed := found.pop("failed", None)) is not None:
                this.note(f"{target.label}: {failed}")
            if found["left"] and found["closed_after_s"] is None:
                this.note(
                    f"{target.label}: not all upstream connections were closed within {measure.LEFT_WITHIN_S:g} s"
                )
            figures = {key: figure([value]) for key, value in found.items() if value is not None}
            this.figures.setdefault(name, {}).update(figures)


def _rounds(this: Run, plan: Plan, began: float) -> None:
    """Measure all targets in turn, in each round the other way round."""
    names = list(this.live)
    for number in range(plan.rounds):
        if time.monotonic() - began > plan.time_s:
            this.note(f"{number} rounds of {plan.rounds}: the time is up")
            return
        for name in names if number % 2 == 0 else reversed(names):
            say(f"round {number + 1} of {plan.rounds}: {BY_NAME[name].label}")
            for measured in measure.one_round(this.rig, BY_NAME[name], this.live[name], plan.scale):
                this.take(measured)


def _latencies(this: Run, plan: Plan, began: float) -> None:
    """Send streams to each target at half of its saturation, and directly at the same rate, in turn."""
    direct = BY_NAME["direct"]
    for name, live in this.live.items():
        costs = this.figures.get(name, {})
        if not live.pid or "burst_fixed_us" not in costs or "paced_chunk_us" not in costs or not plan.latency_s:
            continue
        if time.monotonic() - began > LATENCY_UNTIL_S:
            this.note(f"no latency of {BY_NAME[name].label}: the time is up")
            continue
        rate = measure.half_of_saturation(costs["burst_fixed_us"], costs["paced_chunk_us"])
        workload = f"open-{name}"
        say(f"{BY_NAME[name].label}: {rate:.0f} streams/s")
        for _ in range(plan.latency_rounds):
            for target, at in ((direct, this.live["direct"]), (BY_NAME[name], live)):
                this.take(partial(measure.latency, this.rig, target, at, workload, rate=rate, seconds=plan.latency_s))
        through, floor = valid(this.windows, name, workload), valid(this.windows, "direct", workload)
        if through and floor:
            costs = this.figures[name]
            costs["streams_per_s"] = figure([rate])
            for key, what, percentile in (
                ("added_first_p50_ms", "first_us", "p50"),
                ("added_first_p99_ms", "first_us", "p99"),
                ("added_total_p50_ms", "total_us", "p50"),
            ):
                costs[key] = measure.added_ms(through, floor, what, percentile)


def _result(this: Run, started_at: datetime, took_s: float) -> dict[str, Any]:
    return {
        "version": 1,
        "started_at": started_at.isoformat(timespec="seconds"),
        "took_s": round(took_s, 1),
        "machine": machine(),
        "labels": {name: BY_NAME[name].label for name in BY_NAME if name in this.live or name in this.missing},
        "missing": this.missing,
        "notes": this.notes,
        "figures": {
            name: {key: made.as_json() for key, made in figures.items()} for name, figures in this.figures.items()
        },
        "windows": [window.as_json() for window in this.windows],
    }


def machine() -> Mapping[str, Any]:
    """Say what it was measured on."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_at_start": os.getloadavg()[0],
    }
