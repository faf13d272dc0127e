"""Limits: one over the other, and as quotas."""

from decimal import Decimal

from service.config import LimitSettings
from service.domain.limits import Limits, Quota, Scope, quotas_of


def test_each_field_that_is_left_out_is_taken_from_the_default() -> None:
    own = Limits(requests_per_minute=60, usd_per_day=Decimal(5))
    default = Limits(requests_per_minute=600, request_burst=10, concurrency=8)
    assert own.over(default) == Limits(requests_per_minute=60, request_burst=10, concurrency=8, usd_per_day=Decimal(5))


def test_burst_is_a_minutes_worth_when_left_out() -> None:
    scope = Scope("key", "alice", Limits(requests_per_minute=60, tokens_per_minute=900, token_burst=100))
    assert quotas_of(scope) == (
        Quota("key", "alice", "requests", 60, 60),
        Quota("key", "alice", "tokens", 100, 900),
    )


def test_scope_without_limits_has_no_quotas() -> None:
    assert quotas_of(Scope("key", "alice", Limits())) == ()
    assert quotas_of(Scope("key", "alice", Limits(request_burst=5, token_burst=5))) == ()


def test_settings_and_domain_name_the_same_limits() -> None:
    given = {
        "requests_per_minute": 1,
        "request_burst": 2,
        "tokens_per_minute": 3,
        "token_burst": 4,
        "concurrency": 5,
        "usd_per_day": Decimal(6),
    }
    assert set(given) == set(LimitSettings.model_fields)
    assert Limits(**LimitSettings.model_validate(given).model_dump()) == Limits(1, 2, 3, 4, 5, Decimal(6))
