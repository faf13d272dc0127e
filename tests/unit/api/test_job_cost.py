"""What a job is said to have cost: exactly that, wherever it is told."""

import orjson

from service.api.job_state import job_event, job_state
from service.api.job_stream import JobFraming
from service.domain.job import Job, JobStatus

ANSWER = {"text": "Hello", "model": "m", "prompt_tokens": 3, "completion_tokens": 4, "finish_reason": "stop"}
NANO_USD = 9_007_199_254_740_993_000_000_001
"""More digits than a binary number of 64 bits has."""
USD = "9007199254740993.000000001"
JOB = Job(
    id="j",
    principal="alice",
    route="/generate",
    body=b"{}",
    status=JobStatus.COMPLETE,
    answer=orjson.dumps(ANSWER),
    cost_nano_usd=NANO_USD,
)


def test_a_jobs_cost_is_told_to_the_nano_dollar() -> None:
    assert job_state(JOB).cost_usd == USD
    assert orjson.loads(job_event(JOB))["data"]["cost_usd"] == USD
    assert f'"cost_usd":"{USD}"'.encode() in JobFraming(request_id="r").chunk(JOB)
