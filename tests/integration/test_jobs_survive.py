"""Jobs under faults: what was accepted ends once, whoever dies. The harness and its rules are those of tests/jobs.

``JOBS_COUNT=1000`` runs the figure that is quoted.
"""

import os
from collections import Counter

import pytest

from tests.jobs.candidates.own_layer import OwnLayer
from tests.jobs.cases import CASES, DRAIN_S, all_cases
from tests.jobs.faults import Plan, faulty_run
from tests.jobs.history import broken

pytestmark = pytest.mark.timeout(600)

JOBS = int(os.environ.get("JOBS_COUNT", "200"))


async def test_every_job_ends_once_whichever_workers_are_killed_and_when_the_store_restarts() -> None:
    plan = Plan(jobs=JOBS)
    history = await faulty_run(OwnLayer(drain_s=DRAIN_S), plan)
    ends = Counter(seen.state for seen in history.final.values())
    slowest_s = max(history.reruns_s, default=0.0)
    print(
        f"{JOBS} jobs, {len(history.kills)} workers killed, one restart of the store: {dict(ends)}, "
        f"{history.extra_calls} calls made twice, the slowest {slowest_s:.1f} s after the first"
    )
    assert broken(history, kills_cost=plan.concurrency) == []
    assert len(history.final) == JOBS
    assert history.kills
    assert history.crashes == 0


async def test_no_single_fault_breaks_a_promise() -> None:
    findings = await all_cases(OwnLayer(drain_s=DRAIN_S))
    assert {finding.case: finding.told for finding in findings if not finding.kept} == {}
    assert len(findings) == len(CASES)
