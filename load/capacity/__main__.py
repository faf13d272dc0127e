"""``python -m load.capacity``: what one pod carries, and the chart's values that follow from it.

Exit status: 0; 1 where no rate held, or the run at the target did not; 2 where something that is needed cannot be had.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from load.capacity.plan import planned
from load.capacity.pod import Unreadable
from load.capacity.runs import LOCUST, Measured, RunFailed, Target, measured
from load.capacity.search import Found, Limits, Verdict, find_knee
from load.capacity.values import BOUNDS, values_file
from load.report.files import write_sweep
from load.report.results import BadResults, read_requests

NOT_HELD, UNKNOWN = 1, 2
FRACTIONS = (0.1, 0.95)


class Sweep:
    """Makes runs, and keeps what came of each."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.made: list[Measured] = []

    def measure(self, rate_per_s: float) -> Verdict:
        """Run at a rate, and say what came of it."""
        name = f"{len(self.made) + 1:02}-{rate_per_s:.4g}"
        result = measured(self.target, rate_per_s, name)
        self.made.append(result)
        print(f"{rate_per_s:.4g}/s: {result.verdict} {result.reason}".rstrip(), flush=True)
        return result.verdict

    def at(self, rate_per_s: float) -> Measured:
        """Return the last run at a rate that held."""
        return [item for item in self.made if item.rate_per_s == rate_per_s and item.verdict == "held"][-1]


def plan_capacity(options: argparse.Namespace) -> int:
    """Search, plan, check and write; return the exit status."""
    target = Target(
        options.url, options.metrics, options.scenario, options.duration, options.out, options.locust, options.more
    )
    sweep = Sweep(target)
    limits = Limits(start=options.rate_start, rate_max=options.rate_max, steps_max=options.steps)
    found = find_knee(sweep.measure, limits)
    knee = None if found.knee_per_s is None else sweep.at(found.knee_per_s)
    # What was due, which by chance is not quite what was wanted of random arrivals.
    write_sweep([item.run for item in sweep.made], options.out, knee.run.asked_per_s if knee else None)
    if knee is None:
        print(f"No rate was confirmed to hold ({BOUNDS[found.bounded_by]}): no values are written.", file=sys.stderr)
        return NOT_HELD
    return _write_plan(sweep, found, knee, options)


def _write_plan(sweep: Sweep, found: Found, knee: Measured, options: argparse.Namespace) -> int:
    knee_per_s = knee.run.asked_per_s
    longest = _longest_s(sweep.made)
    plan = planned(
        knee_per_s, knee.pod, longest_stream_s=longest, fraction=options.fraction, planned_per_s=options.planned_rate
    )
    held, check = (True, "Not checked: --no-verify.") if options.no_verify else _checked(sweep, plan.target_per_s)
    text = values_file(
        plan,
        knee.pod,
        knee_per_s=knee_per_s,
        bound=found.bounded_by,
        fraction=options.fraction,
        longest_stream_s=longest,
        check=check,
    )
    path: Path = options.out / "values.yaml"
    path.write_text(text, encoding="utf-8")
    summary = {"knee_per_s": knee_per_s, "bounded_by": found.bounded_by, "plan": asdict(plan), "check": check}
    runs = [
        {"rate_per_s": item.rate_per_s, "verdict": item.verdict, "reason": item.reason, "pod": asdict(item.pod)}
        for item in sweep.made
    ]
    (options.out / "capacity.json").write_text(json.dumps({**summary, "runs": runs}, indent=2) + "\n", encoding="utf-8")
    print(f"Knee {knee_per_s:.4g}/s: {BOUNDS[found.bounded_by]}. {check}\n{path.resolve()}")
    return 0 if held else NOT_HELD


def _checked(sweep: Sweep, rate_per_s: float) -> tuple[bool, str]:
    verdict = sweep.measure(rate_per_s)
    result = sweep.made[-1]
    if verdict == "held":
        return True, f"Checked by a run at {rate_per_s:.4g}/s: every objective held."
    return False, f"THE CHECK FAILED: a run at {rate_per_s:.4g}/s was {verdict} ({' '.join(result.reason.split())})."


def _longest_s(made: Sequence[Measured]) -> float:
    """Return the longest answer of the runs that held: those beyond the knee wait, and are no measure."""
    lengths = [
        item.e2e_s or 0.0
        for result in made
        if result.verdict == "held"
        for item in read_requests(result.path, result.run)
    ]
    tops = [
        route.e2e_s.max or 0.0 for result in made if result.verdict == "held" for route in result.run.routes.values()
    ]
    return max([*lengths, *tops], default=0.0)


def parser() -> argparse.ArgumentParser:
    """Return what the options are."""
    made = argparse.ArgumentParser(prog="python -m load.capacity", description=__doc__)
    made.add_argument("--url", required=True, help="of one pod, not of the Service")
    made.add_argument("--metrics", required=True, help="of the same pod: http://…:9090/metrics")
    made.add_argument("--scenario", required=True, type=Path, help="what is asked, and the objectives")
    made.add_argument("--out", required=True, type=Path, help="a folder for runs, report and values.yaml")
    made.add_argument("--duration", type=_positive, default=60.0, help="of each run, in seconds (60)")
    made.add_argument("--rate-start", type=_positive, default=5.0, help="requests each second that are tried first (5)")
    made.add_argument("--rate-max", type=_positive, default=1000.0, help="the highest rate that is tried (1000)")
    made.add_argument("--steps", type=int, default=40, help="runs at most, without the check (40)")
    made.add_argument("--fraction", type=_fraction, default=0.65, help="of the knee, for which pods are planned (0.65)")
    made.add_argument("--planned-rate", type=_positive, help="of the fleet, at its peak: sets maxReplicas")
    made.add_argument("--no-verify", action="store_true", help="leave out the run at the target")
    made.add_argument("--locust", type=str.split, default=LOCUST, help=argparse.SUPPRESS)
    made.add_argument("more", nargs="*", metavar="OPTION", help="for locust, behind --")
    return made


def _positive(text: str) -> float:
    if (value := float(text)) <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _fraction(text: str) -> float:
    if not FRACTIONS[0] <= (value := float(text)) <= FRACTIONS[1]:
        raise argparse.ArgumentTypeError(f"{text} is not within {FRACTIONS[0]} and {FRACTIONS[1]}; 0.6 to 0.7 is usual")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Plan; return the exit status."""
    options = parser().parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        return plan_capacity(options)
    except (BadResults, RunFailed, Unreadable, subprocess.TimeoutExpired) as error:
        print(error, file=sys.stderr)
        return UNKNOWN


if __name__ == "__main__":
    sys.exit(main())
