"""One run of the load tests at one rate, as a program of its own, and what the pod told meanwhile."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from load.capacity.pod import Observed, observed, sampling, wait_until_idle
from load.capacity.search import Verdict
from load.report.results import Run, read_run

LOCUST = (sys.executable, "-m", "locust", "-f", str(Path(__file__).parents[1] / "locustfile.py"), "--headless")
GOODPUT_MIN = 0.99
"""Of what was asked: the share that must be answered whole and within every bound."""
GRACE_S = 300.0
"""Beyond its duration: for starting, and for the answers that run at the end."""
TAIL = 2000


class RunFailed(Exception):  # noqa: N818 - it reads as what happened
    """The load tests left no result."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked, and how."""

    url: str
    metrics: str
    scenario: Path
    duration_s: float
    out: Path
    locust: Sequence[str] = LOCUST
    more: Sequence[str] = ()
    """Options for locust, as they are."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of a run."""

    rate_per_s: float
    path: Path
    run: Run
    pod: Observed
    verdict: Verdict
    reason: str


def measured(target: Target, rate_per_s: float, name: str) -> Measured:
    """Run at a rate once the pod is idle; raise ``RunFailed`` or ``Unreadable`` where it cannot be had."""
    wait_until_idle(target.metrics)
    out = target.out / name
    with sampling(target.metrics) as samples:
        _run(target, rate_per_s, out)
    run, pod = read_run(out / "run.json"), observed(samples)
    verdict, reason = judged(run, pod)
    return Measured(rate_per_s, out / "run.json", run, pod, verdict, reason)


def judged(run: Run, pod: Observed) -> tuple[Verdict, str]:
    """Return whether a rate held, and why not."""
    if not run.validity.valid:
        return "invalid", "; ".join(run.validity.reasons) or "the generator lagged"
    if pod.restarted:
        return "breached", "the process was restarted"
    if not run.slo.held:
        return "breached", "missed: " + ", ".join(item.name for item in run.slo.results if not item.held)
    if (run.goodput.ratio or 0) < GOODPUT_MIN:
        return "breached", f"goodput was {run.goodput.ratio or 0:.2%} of what was asked"
    return "held", ""


def _run(target: Target, rate_per_s: float, out: Path) -> None:
    command = [
        *target.locust,
        "--host", target.url,
        "--scenario", str(target.scenario),
        "--rate", f"{rate_per_s:.6g}",
        "--duration", f"{target.duration_s:g}",
        "--out", str(out),
        *target.more,
    ]  # fmt: skip
    # Its exit status says no more than run.json, which is there unless it failed to run at all.
    done = subprocess.run(  # noqa: S603 - our own program, the operator's options
        command, capture_output=True, text=True, timeout=target.duration_s + GRACE_S, check=False
    )
    if not (out / "run.json").is_file():
        raise RunFailed(
            f"{' '.join(command)} ended with {done.returncode} and left no run.json:\n{done.stderr[-TAIL:]}"
        )
