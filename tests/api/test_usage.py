"""What a generation leaves on the ledger, and what ``/usage`` says of it."""

import re
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest

from service.errors import UpstreamUnavailable
from service.providers.fake import Script
from tests.support.fake_app import ALICE, BOB, FakeApp, bearer, fake_app, keyed_auth

PRICED: dict[str, Any] = {
    "models": {
        "gpt-4o": {
            "routes": [{"provider": "fake", "model": "upstream-4o"}],
            "price_usd_per_million_tokens": {"input": 1, "output": 2, "as_of": "2026-11-01", "source": "a test"},
        }
    }
}


@pytest.fixture
async def api() -> AsyncIterator[FakeApp]:
    auth = keyed_auth()
    auth["keys"]["boss"] = {"key": "boss-key-0123456789", "usage": "all"}
    async with fake_app(auth=auth, **PRICED) as made:
        yield made


def body(**more: Any) -> dict[str, Any]:
    return {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello"}], **more}


async def ask(api: FakeApp, key: str = ALICE, **more: Any) -> None:
    await api.client.post("/v1/chat/completions", json=body(**more), headers=bearer(key))


async def usage(api: FakeApp, key: str = ALICE, path: str = "/usage", **query: Any) -> Any:
    api.clock.advance(1)  # what ended just now is before now
    answer = await api.client.get(path, params=query, headers=bearer(key))
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


async def test_usage_is_summed_up_with_its_cost(api: FakeApp) -> None:
    await ask(api, user="u1")
    await ask(api, user="u2", stream=True)
    [all_of_it] = await usage(api)
    assert all_of_it["requests"] == 2
    assert all_of_it["cost_nano_usd"] == 1_000 * all_of_it["input_tokens"] + 2_000 * all_of_it["output_tokens"] > 0
    assert all_of_it["cost_usd"] == f"{Decimal(all_of_it['cost_nano_usd']) / 10**9:f}"
    assert {row["user"]: row["requests"] for row in await usage(api, by="user")} == {"u1": 1, "u2": 1}
    [row] = await usage(api, by=["model", "provider"])
    assert (row["model"], row["provider"]) == ("gpt-4o", "fake")


@pytest.mark.parametrize("path", ["/usage", "/usage/capacity"])
async def test_an_answer_says_from_when_on_it_is_complete(api: FakeApp, path: str) -> None:
    answer = (await api.client.get(path, headers=bearer(ALICE))).json()
    assert answer["complete_since"] == answer["since"]  # of files, none goes


async def test_a_key_sees_its_own_usage_and_one_that_may_all(api: FakeApp) -> None:
    await ask(api)
    await ask(api, BOB)
    assert [row["key"] for row in await usage(api, by="key")] == ["alice"]
    assert [row["key"] for row in await usage(api, "boss-key-0123456789", by="key")] == ["alice", "bob"]


async def test_failures_and_refusals_are_on_it_too(api: FakeApp) -> None:
    api.provider.script = Script(before=UpstreamUnavailable("down", provider="fake"))
    await ask(api)
    [row] = await usage(api)
    assert (row["requests"], row["failed"], row["output_tokens"]) == (1, 1, 0)


async def test_capacity_counts_by_steps(api: FakeApp) -> None:
    await ask(api)
    steps = await usage(api, path="/usage/capacity", step_s=3_600)
    assert len(steps) == 24
    assert sum(step["requests"] for step in steps) == 1


async def test_unusual_users_are_for_those_who_see_all(api: FakeApp) -> None:
    answer = await api.client.get("/usage/unusual", headers=bearer(ALICE))
    assert answer.status_code == 403
    assert "usage: all" in answer.json()["detail"]
    assert await usage(api, "boss-key-0123456789", path="/usage/unusual") == []


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"since": "yesterday"}, "since"),
        ({"since": "2026-11-01T00:00:00"}, "since"),
        ({"until": "0.5"}, "until"),
        ({"until": "1793491200"}, "until"),
        ({"since": "2026-11-02T00:00:00Z", "until": "2026-11-01T00:00:00Z"}, "since"),
        ({"until": "0001-01-01T00:00:00Z"}, "until"),
        ({"since": "0001-01-01T00:00:00+14:00"}, "since"),
        ({"until": "9999-12-31T23:59:59-12:00"}, "until"),
        ({"by": "colour"}, "by"),
        ({"color": "red"}, "color"),
    ],
)
async def test_a_question_that_makes_no_sense_names_what_is_wrong(
    api: FakeApp, query: dict[str, str], field: str
) -> None:
    answer = await api.client.get("/usage", params=query, headers=bearer(ALICE))
    assert answer.status_code == 422
    assert field in answer.text


@pytest.mark.parametrize("path", ["/usage", "/usage/capacity"])
async def test_all_times_that_are_taken_are_answered(api: FakeApp, path: str) -> None:
    for since, until in (
        ("1970-01-01T00:00:00+14:00", "1970-01-01T00:00:01-12:00"),
        (None, "9998-12-31T23:59:59-12:00"),
    ):
        query = {"until": until, "step_s": "86400"} if path.endswith("capacity") else {"until": until}
        answer = await api.client.get(
            path, params={**query, **({"since": since} if since else {})}, headers=bearer(ALICE)
        )
        assert answer.status_code == 200, answer.text


async def test_a_users_name_that_is_no_name_is_kept_without_what_is_none(api: FakeApp) -> None:
    asked = {**body(), "user": "n\x00\x1b[2J\u2028" + 300 * "x"}
    assert (await api.client.post("/v1/chat/completions", json=asked, headers=bearer(ALICE))).status_code == 200
    (row,) = await usage(api, ALICE, by="user")
    assert row["user"] == "n\ufffd\ufffd[2J\ufffd" + 249 * "x"


async def test_times_are_told_in_a_header(api: FakeApp) -> None:
    answer = await api.client.post("/v1/chat/completions", json=body(), headers=bearer(ALICE))
    parts = dict(part.strip().split(";dur=") for part in answer.headers["server-timing"].split(","))
    assert list(parts) == ["limits", "queue", "upstream", "own"]
    assert all(float(value) >= 0 for value in parts.values())


async def test_the_line_on_a_request_tells_of_its_generation(api: FakeApp, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    await ask(api, user="u\n{}")
    [line] = [
        record for record in caplog.records if record.message == "request" and vars(record)["route"].startswith("/v1")
    ]
    told = vars(line)
    assert (told["principal"], told["user"], told["model"], told["generation_outcome"]) == (
        "alice",
        "u\ufffd{}",
        "gpt-4o",
        "ok",
    )
    assert re.fullmatch(r"0\.\d+", told["cost_usd"])  # no exponent
    assert not [line for line in caplog.records if line.message == "generation"]
