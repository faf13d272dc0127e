"""The headers of limits, in the draft's form and in the vendors'."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from service.admission.memory import MemoryLimiter
from service.api.rate_limit import go_duration, rate_limit_headers
from service.domain.clock import ManualClock
from service.domain.limits import Demand, Limits, Scope
from service.domain.principal import Principal, RequestContext

NOW = datetime(2026, 11, 25, 12, 0, 0, 1, UTC)
LIMITS = Limits(
    requests_per_minute=60,
    request_burst=10,
    tokens_per_minute=1_000,
    concurrency=4,
    usd_per_day=Decimal(2),
)


async def context(*, asked: bool = True, limits: Limits = LIMITS) -> RequestContext:
    made = RequestContext("r", Principal("alice", limits=limits))
    if asked:
        scopes = [Scope("key", "alice", limits), Scope("model", "m", Limits(requests_per_minute=3))]
        clock = ManualClock(wall=1_800_000_000 - 1_800_000_000 % 86_400)
        reservation = await MemoryLimiter(clock=clock).reserve(scopes, Demand(101, 500_000_000))
        made.standing.balances = reservation.balances
    return made


async def test_policy_and_state_have_the_drafts_form() -> None:
    headers = dict(rate_limit_headers(await context(), "/generate", now=NOW))
    assert headers == {
        b"ratelimit-policy": b'"key-requests";q=10;w=10, "key-tokens";q=1000;qu="tokens";w=60, '
        b'"key-concurrency";q=4;qu="concurrent-requests", "key-usd";q=2000000000;qu="nano-usd";w=86400, '
        b'"model-requests";q=3;w=60',
        b"ratelimit": b'"key-requests";r=9;t=1, "key-tokens";r=899;t=7, "key-concurrency";r=3, '
        b'"key-usd";r=1500000000;t=86400, "model-requests";r=2;t=20',
    }


async def test_openai_clients_see_the_tightest_limit_in_their_own_form() -> None:
    headers = dict(rate_limit_headers(await context(), "/v1/chat/completions", now=NOW))
    assert {name: value for name, value in headers.items() if name.startswith(b"x-")} == {
        b"x-ratelimit-limit-requests": b"3",
        b"x-ratelimit-remaining-requests": b"2",
        b"x-ratelimit-reset-requests": b"20s",
        b"x-ratelimit-limit-tokens": b"1000",
        b"x-ratelimit-remaining-tokens": b"899",
        b"x-ratelimit-reset-tokens": b"6.06s",
    }


async def test_anthropic_clients_see_instants() -> None:
    headers = dict(rate_limit_headers(await context(), "/v1/messages", now=NOW))
    assert {name: value for name, value in headers.items() if name.startswith(b"anthropic-")} == {
        b"anthropic-ratelimit-requests-limit": b"3",
        b"anthropic-ratelimit-requests-remaining": b"2",
        b"anthropic-ratelimit-requests-reset": b"2026-11-25T12:00:21Z",
        b"anthropic-ratelimit-tokens-limit": b"1000",
        b"anthropic-ratelimit-tokens-remaining": b"899",
        b"anthropic-ratelimit-tokens-reset": b"2026-11-25T12:00:07Z",
    }


async def test_where_nothing_was_asked_only_the_policy_is_told() -> None:
    limited = Limits(requests_per_minute=7, request_burst=20)
    headers = rate_limit_headers(await context(asked=False, limits=limited), "/v1/models", now=NOW)
    assert headers == [(b"ratelimit-policy", b'"key-requests";q=20;w=172')]


async def test_who_has_no_limits_gets_no_headers() -> None:
    assert rate_limit_headers(await context(asked=False, limits=Limits()), "/v1/models", now=NOW) == []


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0s"),
        (12, "12ms"),
        (1_000, "1s"),
        (6_060, "6.06s"),
        (59_999, "59.999s"),
        (360_000, "6m0s"),
        (3_600_000, "1h0m0s"),
        (90_061_500, "25h1m1.5s"),
    ],
)
def test_durations_are_those_of_go(ms: int, text: str) -> None:
    assert go_duration(ms) == text
