"""``python -m tests.jobs.compare NAME…``: candidates under the same faults, as a table."""

import asyncio
import importlib
import statistics
import sys
import time
from dataclasses import replace

from tests.jobs.candidate import Candidate
from tests.jobs.faults import Plan, faulty_run
from tests.jobs.history import broken

CANDIDATES = {
    "own": "tests.jobs.candidates.own_layer:OwnLayer",
    "streaq": "tests.jobs.candidates.streaq_queue:Streaq",
    "celery": "tests.jobs.candidates.celery_queue:Celery",
}


def candidate(name: str) -> Candidate:
    """Return the candidate of a name."""
    module, _, attribute = CANDIDATES[name].partition(":")
    found: Candidate = getattr(importlib.import_module(module), attribute)()
    return found


async def main(names: list[str], jobs: int) -> None:
    """Run all, one after the other."""
    print(
        "| | jobs ended | kills (crashes) | extra calls | slowest re-run, from the lost call | promises broken | took |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in names:
        tried = candidate(name)
        began = time.monotonic()
        history = await faulty_run(tried, replace(Plan(), jobs=jobs))
        found = broken(history)
        rules = {text.partition(":")[0] for text in found}
        counted = ", ".join(f"{rule} {sum(text.startswith(rule) for text in found)}" for rule in sorted(rules))
        ended = sum(seen.state in {"complete", "cancelled"} for seen in history.final.values())
        slowest = f"{max(history.reruns_s):.1f} s" if history.reruns_s else "none"
        print(
            f"| {tried.name} | {ended} of {jobs} | {len(history.kills)} ({history.crashes}) | {history.extra_calls} "
            f"| {slowest} | {counted or 'none'} | {time.monotonic() - began:.0f} s |",
            flush=True,
        )
        for text in found[:5]:
            print(f"  {text}", file=sys.stderr)
        for seen in history.final.values():
            if seen.state not in {"complete", "cancelled"}:
                print(f"  {seen}", file=sys.stderr)
        if history.reruns_s:
            print(f"  median re-run {statistics.median(history.reruns_s):.1f} s", file=sys.stderr)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[2:], int(sys.argv[1])))
