"""``llm-api usage``, beside a service and without one."""

import json
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from tests.support.command import free_port, run, running

pytestmark = pytest.mark.timeout(120)

ASKED = {
    "model": "gpt-4o-mini",
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": 3,
    "user_id": "user-1",
}


@pytest.mark.parametrize("store", ["true", "false"])
def test_usage_is_told_while_the_service_runs_and_after_it(tmp_path: Path, store: str) -> None:
    settings = {
        "LLM_API_PROVIDERS__SIM__KIND": "simulator",
        "LLM_API_EMBEDDED__STORE": store,
        "LLM_API_EMBEDDED__CACHE_DIR": str(tmp_path),
        "LLM_API_USAGE__DIR": str(tmp_path / "usage"),
    }
    ports = ("--port", str(free_port()), "--metrics-port", str(free_port()))
    with running("serve", *ports, settings=settings) as service:
        address = service.address("API")
        assert httpx.post(f"{address}/chat", json=ASKED).status_code == 200
        [answered] = httpx.get(f"{address}/usage", params={"by": "user"}).json()["data"]
        beside = run("usage", "--json", "--by", "user", settings=settings)
        service.stop(signal.SIGTERM)
    after = run("usage", "--json", "--by", "user", settings=settings)
    for result in (beside, after):
        assert result.returncode == 0, result.stderr
        told = json.loads(result.stdout)
        assert (told["user"], told["requests"], told["output_tokens"]) == ("user-1", 1, 3)
        assert told["input_tokens"] == answered["input_tokens"]
        # The store's ledger began today, and knows nothing of the time before; files are there from the beginning.
        assert ("records from before" in result.stderr) is (store == "true")
        begun = datetime.fromisoformat(told["complete_since"])
        assert (datetime.now(UTC) - begun < timedelta(hours=12)) is (store == "true")
    lines = run("usage", "--capacity", "3600", "--json", settings=settings).stdout.splitlines()
    steps = [json.loads(line) for line in lines]
    assert len(steps) == 24
    assert sum(step["requests"] for step in steps) == 1
    assert max(step["peak_concurrency"] for step in steps) == 1
    table = run("usage", "--by", "user", settings=settings).stdout.splitlines()
    assert table[0].split()[:2] == ["user", "requests"]
    assert table[1].split()[:2] == ["user-1", "1"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--since", "yesterday"), "a time with its offset"),
        (("--since", "2026-11-02T00:00:00Z", "--until", "2026-11-01T00:00:00Z"), "--since has to be before --until"),
        (("--by", "colour"), "choose from"),
        (("--capacity", "0"), "takes whole seconds"),
        (("--capacity", "43"), "--capacity 43 makes more than 2000 steps of this time: take 44 or more"),
        (("--since", "0001-01-01T00:00:00+14:00"), "--since: takes a time of the years 1970 to 9998"),
        (("--until", "9999-12-31T23:59:59Z"), "--until: takes a time of the years 1970 to 9998"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(arguments: tuple[str, ...], told: str) -> None:
    result = run("usage", *arguments)
    assert result.returncode == 2
    assert told in result.stderr
