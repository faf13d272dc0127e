"""Runs of load that never were: ``run.json`` and its requests, with figures that are known."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Tree = dict[str, Any]


def distribution(values: Sequence[float]) -> Tree:
    """Return percentiles by the nearest rank."""
    ordered = sorted(values)
    if not ordered:
        return dict.fromkeys(("p50", "p90", "p95", "p99", "max", "mean"))
    ranks = {f"p{rank}": ordered[-(-rank * len(ordered) // 100) - 1] for rank in (50, 90, 95, 99)}
    return {**ranks, "max": ordered[-1], "mean": sum(ordered) / len(ordered)}


def requests(
    seconds: int = 30, rate: int = 20, *, ttft_s: float = 0.2, spread: float = 0.1, seed: int = 1, good: float = 1.0
) -> list[Tree]:
    """Return requests by the clock, with times to first token about ``ttft_s``; all but the share ``good`` fail."""
    dice = random.Random(seed)  # noqa: S311 - repeatable
    made = []
    for number in range(seconds * rate):
        intended = number / rate
        first = ttft_s * dice.lognormvariate(0, spread)
        failed = dice.random() >= good
        made.append(
            {
                "route": "/stream",
                "intended_s": intended,
                "sent_s": intended + 0.001,
                "first_s": None if failed else intended + first,
                "last_s": None if failed else intended + first + 1,
                "end_s": intended + (0.01 if failed else first + 1),
                "chunks": 0 if failed else 21,
                "output_tokens": 0 if failed else 21,
                "outcome": "503" if failed else "completed",
                "max_gap_s": None if failed else 0.05,
            }
        )
    return made


def run(
    made: Sequence[Tree], *, seconds: int = 30, valid: bool = True, held: bool = True, name: str = "mixed", **other: Any
) -> Tree:
    """Return the ``run.json`` of such requests."""
    done = [item for item in made if item["first_s"] is not None]
    first = [item["first_s"] - item["intended_s"] for item in done]
    whole = [item["end_s"] - item["intended_s"] for item in done]
    route = {
        "asked": len(made),
        "completed": len(done),
        "failed": {"503": len(made) - len(done)},
        "cut": 0,
        "ttft_s": distribution(first),
        "itl_s": distribution([0.05] * len(done)),
        "tpot_s": distribution([0.05] * len(done)),
        "e2e_s": distribution(whole),
        "stalls": 0,
        "output_tokens": 21 * len(done),
    }
    delay = {"p50": 0.001 if valid else 0.05, "p99": 0.002, "max": 0.003}
    return {
        "version": 1,
        "scenario": {"name": name},
        "started_at": "2026-11-30T06:00:00+00:00",
        "duration_s": float(seconds),
        "generator": {
            "workers": 1,
            "schedule_delay_s": delay,
            "asked": len(made),
            "sent": len(made),
            "achieved_ratio": 1,
        },
        "validity": {"valid": valid, "reasons": [] if valid else ["the median request was sent 50 ms late"]},
        "slo": {
            "held": held,
            "results": [
                {"name": "ttft", "metric": "ttft_s", "percentile": 99, "bound": 0.5, "value": 0.3, "held": held}
            ],
        },
        "routes": {"/stream": route},
        "goodput": {"per_s": len(done) / seconds, "ratio": len(done) / len(made)},
        "timeline": [_second(made, at) for at in range(seconds)],
        "requests": "requests.jsonl",
        **other,
    }


def _second(made: Sequence[Tree], at: int) -> Tree:
    due = [item for item in made if at <= item["intended_s"] < at + 1]
    done = [item for item in due if item["first_s"] is not None]
    return {
        "t_s": at,
        "asked": len(due),
        "sent": len(due),
        "completed": len(done),
        "failed": len(due) - len(done),
        "in_flight": len(done),
        "ttft_s": distribution([item["first_s"] - item["intended_s"] for item in done]),
        "e2e_s": distribution([item["end_s"] - item["intended_s"] for item in done]),
        "itl_s": distribution([0.05] * len(done)),
        "goodput": len(done),
        "schedule_delay_p50_s": 0.001,
    }


def write(folder: Path, made: Sequence[Tree] | None = None, **other: Any) -> Path:
    """Write such a run; return the path of its ``run.json``."""
    made = requests() if made is None else made
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "requests.jsonl").write_text("".join(f"{json.dumps(item)}\n" for item in made))
    path = folder / "run.json"
    path.write_text(json.dumps(run(made, **other)))
    return path
