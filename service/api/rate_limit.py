"""The headers that say where a caller stands: the IETF draft's, and under ``/v1`` the vendors' own."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta

from service.domain.limits import Balance, Quota, Resource, Scope, quotas_of
from service.domain.principal import RequestContext

_DAY_S = 86_400
_SECOND_MS = 1_000
_UNITS: dict[Resource, str] = {
    "requests": "",
    "tokens": ';qu="tokens"',
    "concurrency": ';qu="concurrent-requests"',
    "usd": ';qu="nano-usd"',
}
"""draft-ietf-httpapi-ratelimit-headers-10 section 3.1.4; requests are the default, and only they and
``concurrent-requests`` are registered."""
_VENDORS_RESOURCES: tuple[Resource, ...] = ("requests", "tokens")

Headers = list[tuple[bytes, bytes]]


def rate_limit_headers(context: RequestContext, path: str, *, now: datetime) -> Headers:
    """Write what is limited, and what is left right after this very request.

    Without the second where nothing was asked of the limiter: listing models takes nothing, and a body that is wrong
    never came so far. Empty for who has no limits.
    """
    balances = context.standing.balances
    quotas = [balance.quota for balance in balances] or _quotas(context)
    if not quotas:
        return []
    headers = [(b"ratelimit-policy", ", ".join(map(_policy, quotas)).encode())]
    if balances:
        headers.append((b"ratelimit", ", ".join(map(_state, balances)).encode()))
        if path.startswith("/v1/"):
            headers += _openai(balances)
        if path.startswith("/v1/messages"):
            headers += _anthropic(balances, now)
    return headers


def go_duration(ms: int) -> str:
    """Write a duration as Go does, and with it OpenAI's reset headers: ``12ms``, ``1.5s``, ``6m0s``, ``1h0m0s``."""
    if ms < _SECOND_MS:
        return f"{ms}ms" if ms else "0s"
    minutes, rest_ms = divmod(ms, 60_000)
    seconds = f"{rest_ms / 1_000:.3f}".rstrip("0").rstrip(".") + "s"
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{seconds}"
    return f"{minutes}m{seconds}" if minutes else seconds


def _quotas(context: RequestContext) -> list[Quota]:
    principal = context.principal
    return list(quotas_of(Scope("key", principal.name, principal.limits)))


def _name(quota: Quota) -> str:
    return f'"{quota.kind}-{quota.resource}"'


def _policy(quota: Quota) -> str:
    if quota.per_minute:
        window = f";w={-(-quota.capacity * 60 // quota.per_minute)}"
    else:
        window = f";w={_DAY_S}" if quota.resource == "usd" else ""
    return f"{_name(quota)};q={quota.capacity}{_UNITS[quota.resource]}{window}"


def _state(balance: Balance) -> str:
    reset = "" if balance.quota.resource == "concurrency" else f";t={-(-balance.reset_ms // 1_000)}"
    return f"{_name(balance.quota)};r={balance.remaining}{reset}"


def _tightest(balances: Iterable[Balance], resource: Resource) -> Balance | None:
    """Return the one that will refuse first; the vendors' headers know one limit of a kind."""
    of_it = [balance for balance in balances if balance.quota.resource == resource]
    return min(of_it, key=lambda balance: balance.remaining, default=None)


def _openai(balances: Iterable[Balance]) -> Headers:
    return [
        (f"x-ratelimit-{what}-{balance.quota.resource}".encode(), value.encode())
        for balance in _vendors_balances(balances)
        for what, value in (
            ("limit", str(balance.quota.capacity)),
            ("remaining", str(balance.remaining)),
            ("reset", go_duration(balance.reset_ms)),
        )
    ]


def _anthropic(balances: Iterable[Balance], now: datetime) -> Headers:
    return [
        (f"anthropic-ratelimit-{balance.quota.resource}-{what}".encode(), value.encode())
        for balance in _vendors_balances(balances)
        for what, value in (
            ("limit", str(balance.quota.capacity)),
            ("remaining", str(balance.remaining)),
            ("reset", _rfc_3339(now + timedelta(milliseconds=balance.reset_ms))),
        )
    ]


def _vendors_balances(balances: Iterable[Balance]) -> Iterator[Balance]:
    for resource in _VENDORS_RESOURCES:
        balance = _tightest(balances, resource)
        if balance is not None:
            yield balance


def _rfc_3339(instant: datetime) -> str:
    """Write an instant as the vendor does, in whole seconds; rounded up, so that it is never too early."""
    whole = instant.astimezone(UTC) + timedelta(seconds=1, microseconds=-1)
    return whole.strftime("%Y-%m-%dT%H:%M:%SZ")
