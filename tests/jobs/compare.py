"""``python -m tests.jobs.compare NAME…``: candidates under the same faults, as tables."""

import argparse
import asyncio
import importlib
import math
import os
import statistics
import sys
from dataclasses import replace

from tests.jobs.candidate import Candidate
from tests.jobs.cases import CASES, DRAIN_S, all_cases
from tests.jobs.faults import Plan, faulty_run
from tests.jobs.history import broken

CANDIDATES = {
    "own": "tests.jobs.candidates.own_layer:OwnLayer",
    "streaq": "tests.jobs.candidates.streaq_queue:Streaq",
    "celery": "tests.jobs.candidates.celery_queue:Celery",
    "arq": "tests.jobs.candidates.arq_queue:Arq",
}
RUN_HEAD = (
    "| | jobs ended | kills (crashes) | extra calls | slowest re-run, from the lost call | promises broken | took |"
)


def candidate(name: str) -> Candidate:
    """Return the candidate of a name."""
    module, _, attribute = CANDIDATES[name].partition(":")
    found: Candidate = getattr(importlib.import_module(module), attribute)(drain_s=DRAIN_S)
    return found


async def run(tried: Candidate, plan: Plan) -> str:
    """Run all jobs of a plan; return a row."""
    history = await faulty_run(tried, plan)
    took_s = max(history.ended.values(), default=math.nan) - min(history.accepted.values(), default=math.nan)
    found = broken(history, kills_cost=plan.concurrency)
    rules = {text.partition(":")[0] for text in found}
    counted = ", ".join(f"{rule} {sum(text.startswith(f'{rule}:') for text in found)}" for rule in sorted(rules))
    ended = sum(seen.state in {"complete", "cancelled"} for seen in history.final.values())
    slowest = f"{max(history.reruns_s):.1f} s" if history.reruns_s else "none"
    for text in found[:10]:
        print(f"  {text}", file=sys.stderr)
    for seen in history.final.values():
        if seen.state not in {"complete", "cancelled"}:
            print(f"  {seen}", file=sys.stderr)
    if history.reruns_s:
        print(f"  median re-run {statistics.median(history.reruns_s):.1f} s", file=sys.stderr)
    print(f"  {len(history.cancelled)} cancels acknowledged", file=sys.stderr)
    return (
        f"| {tried.name} | {ended} of {plan.jobs} | {len(history.kills)} ({history.crashes}) | {history.extra_calls} "
        f"| {slowest} | {counted or 'none'} | {took_s:.0f} s |"
    )


async def cases(tried: Candidate) -> str:
    """Run the single faults; return a row."""
    findings = await all_cases(tried)
    return f"| {tried.name} |" + "".join(
        f" {'kept' if finding.kept else '**broken**'}: {finding.told} |" for finding in findings
    )


async def main() -> None:
    """Run all, one after the other."""
    parser = argparse.ArgumentParser(description="Try queues of jobs under faults.")
    parser.add_argument("names", nargs="+", choices=sorted(CANDIDATES))
    parser.add_argument("--jobs", type=int, default=int(os.environ.get("JOBS_COUNT", "1000")))
    parser.add_argument("--only", choices=("run", "cases"))
    asked = parser.parse_args()
    tried = [candidate(name) for name in asked.names]
    if asked.only != "cases":
        print(RUN_HEAD, "|---|---|---|---|---|---|---|", sep="\n", flush=True)
        for one in tried:
            print(await run(one, replace(Plan(), jobs=asked.jobs)), flush=True)
        print()
    if asked.only != "run":
        print(f"| | {' | '.join(CASES)} |", "|---" * (len(CASES) + 1) + "|", sep="\n", flush=True)
        for one in tried:
            print(await cases(one), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
