"""Puts together what a run gave: `run.json` and `requests.jsonl`, version 1."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from load.measures import COMPLETED, Gaps, Record, percentile, pick, summary
from load.scenario import Scenario
from load.validity import DELAY_MAX_S, GENERATOR, Sent, held, reasons_against

VERSION = 1
CUT = "cut"
"""A stream that closed without a terminal event."""


@dataclass(slots=True)
class Measured:
    """Everything that all workers measured in one run."""

    scenario: Scenario
    started_at: str
    workers: int
    asked: list[float]
    """Intended times of all that was due, by the schedule and not by what workers say."""
    records: list[Record] = field(default_factory=list)
    gaps: defaultdict[str, Gaps] = field(default_factory=lambda: defaultdict(Gaps))
    """By route."""
    gaps_at: defaultdict[int, Gaps] = field(default_factory=lambda: defaultdict(Gaps))
    """By second."""


def run_document(run: Measured) -> dict[str, Any]:
    """Make the content of `run.json`."""
    scenario, records = run.scenario, run.records
    # In a closed loop the users decide: what they asked was due.
    asked = run.asked or [one.intended_s for one in records]
    delays = sorted(one.delay_s for one in records)
    until_s = scenario.duration_s + DELAY_MAX_S
    in_time = sum(one.sent_s <= until_s and one.outcome != GENERATOR for one in records)
    unsendable = sum(one.outcome == GENERATOR for one in records)
    reasons = reasons_against(Sent(len(asked), in_time, percentile(delays, 50), unsendable))
    objectives = held(scenario, records, run.gaps, len(asked))
    good = sum(one.is_good(scenario.goodput) for one in records)
    return {
        "version": VERSION,
        "scenario": scenario.model_dump(mode="json"),
        "started_at": run.started_at,
        "duration_s": scenario.duration_s,
        "generator": {
            "workers": run.workers,
            "schedule_delay_s": pick(summary(delays), "p50", "p99", "max"),
            "asked": len(asked),
            "sent": len(records) - unsendable,
            "achieved_ratio": in_time / len(asked) if asked else 0.0,
        },
        "validity": {"valid": not reasons, "reasons": reasons},
        "slo": {"held": all(bool(one["held"]) for one in objectives), "results": objectives},
        "routes": {route: _route(found, run.gaps[route]) for route, found in _by_route(records).items()},
        "goodput": {"per_s": good / scenario.duration_s, "ratio": good / len(asked) if asked else 0.0},
        "timeline": _timeline(run, asked),
        "requests": "requests.jsonl",
    }


def write(folder: Path, run: Measured) -> dict[str, Any]:
    """Write both files; return what `run.json` says. It is written last: where it stands, the run is whole."""
    document = run_document(run)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "requests.jsonl").open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(asdict(one)) + "\n" for one in run.records)
    (folder / "run.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return document


def _by_route(records: Iterable[Record]) -> Mapping[str, list[Record]]:
    found: defaultdict[str, list[Record]] = defaultdict(list)
    for one in records:
        found[one.route].append(one)
    return dict(sorted(found.items()))


def _route(records: list[Record], gaps: Gaps) -> dict[str, Any]:
    outcomes = Counter(one.outcome for one in records)
    completed = outcomes.pop(COMPLETED, 0)
    ended = [one for one in records if one.outcome == COMPLETED]
    return {
        "asked": len(records),
        "completed": completed,
        "failed": dict(outcomes),
        "cut": outcomes.get(CUT, 0),
        # A first token that came is one, whatever came after it; what never came has no end to measure.
        "ttft_s": summary(one.ttft_s for one in records),
        "itl_s": gaps.summary(),
        "tpot_s": summary(one.tpot_s for one in ended),
        "e2e_s": summary(one.e2e_s for one in ended),
        "stalls": sum(one.stalls for one in records),
        "output_tokens": sum(one.output_tokens or 0 for one in records),
    }


def _timeline(run: Measured, asked: list[float]) -> list[dict[str, Any]]:
    """Describe each second. Latencies and delays stand at the intended time: what a caller of that second got."""
    due = Counter(map(int, asked))
    sent = Counter(int(one.sent_s) for one in run.records)
    ended: Counter[tuple[int, str]] = Counter()
    intended: defaultdict[int, list[Record]] = defaultdict(list)
    for one in run.records:
        outcome = "completed" if one.outcome == COMPLETED else "failed"
        ended[int(one.end_s), outcome] += 1
        ended[int(one.end_s), "good"] += one.is_good(run.scenario.goodput)
        intended[int(one.intended_s)].append(one)
    seconds = range(max([*due, *sent, *(second for second, _ in ended)], default=-1) + 1)
    in_flight, timeline = 0, []
    for second in seconds:
        completed, failed = ended[second, "completed"], ended[second, "failed"]
        in_flight += sent[second] - completed - failed
        there = intended[second]
        timeline.append(
            {
                "t_s": second,
                "asked": due[second],
                "sent": sent[second],
                "completed": completed,
                "failed": failed,
                "in_flight": in_flight,
                "ttft_s": pick(summary(one.ttft_s for one in there), "p50", "p90", "p99"),
                "e2e_s": pick(summary(one.e2e_s for one in there), "p50", "p90", "p99"),
                "itl_s": pick(run.gaps_at[second].summary(), "p50", "p90", "p99"),
                "goodput": ended[second, "good"],
                "schedule_delay_p50_s": percentile(sorted(one.delay_s for one in there), 50),
            }
        )
    return timeline
