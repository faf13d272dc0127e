"""``/usage``: what was used, by whom, and what it cost; how busy it was; and who is far from what is usual for them."""

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, get_args

from fastapi import APIRouter, Query
from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, Field, model_validator
from starlette.responses import Response

from service.api.deps import AllResources, Context
from service.api.responses import json_response, problems
from service.domain.limits import decimal_usd
from service.domain.principal import RequestContext
from service.domain.usage_record import UsageRecord
from service.engine.bounded_usage import BoundedUsage
from service.engine.usage_report import By, UsageSum, capacity, complete_since, unusual, usage_by
from service.errors import PermissionDenied, StoreUnavailable
from service.resources import Resources

router = APIRouter(prefix="/usage", tags=["usage"])

DEFAULT_SPAN = timedelta(days=1)
STEPS_MAX = 2_000
"""Steps of time in one answer."""
FIRST_YEAR, LAST_YEAR = 1970, 9998
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")
"""Section 5.6."""

_FAILURES = problems(401, 403, 422, 429, 503)


def _rfc3339(value: object) -> object:
    """Refuse what pydantic would take for a time beside RFC 3339, such as seconds since the epoch."""
    if isinstance(value, str) and not _RFC3339.fullmatch(value):
        raise ValueError("takes a time with its offset, such as 2026-11-01T00:00:00Z")
    return value


def _in_range(value: datetime) -> datetime:
    """Refuse times that arithmetic with offsets and spans does not bear."""
    if not FIRST_YEAR <= value.year <= LAST_YEAR:
        raise ValueError(f"takes a time of the years {FIRST_YEAR} to {LAST_YEAR}")
    return value


Instant = Annotated[AwareDatetime, BeforeValidator(_rfc3339), AfterValidator(_in_range)]


class Span(BaseModel, extra="forbid"):
    """From when until when; the last 24 hours when left out."""

    since: Instant | None = Field(None, description="RFC 3339; the first instant that counts")
    until: Instant | None = Field(None, description="RFC 3339; the first instant that does not; now if left out")

    @model_validator(mode="after")
    def _has_an_extent(self) -> "Span":
        since, until = self.bounds(datetime.now(UTC))
        if since >= until:
            raise ValueError("since has to be before until")
        return self

    def bounds(self, now: datetime) -> tuple[float, float]:
        """Return both ends, in seconds since the epoch."""
        until = self.until or now
        return (self.since or until - DEFAULT_SPAN).timestamp(), until.timestamp()


class UsageQuery(Span):
    """Which usage, and how it is put together."""

    by: list[By] = Field([], description="one group for each key, user, model, provider or day (UTC); may be repeated")


class CapacityQuery(Span):
    """When, and in what steps."""

    step_s: int = Field(300, ge=1, le=86_400, description="seconds of one step")

    @model_validator(mode="after")
    def _is_bounded(self) -> "CapacityQuery":
        since, until = self.bounds(datetime.now(UTC))
        if (until - since) / self.step_s > STEPS_MAX:
            raise ValueError(f"step_s is too small: more than {STEPS_MAX} steps")
        return self


class UsageGroup(BaseModel):
    """What a group has together. Tokens are inclusive: cached ones are input, reasoning is output."""

    key: str | None = None
    user: str | None = None
    model: str | None = None
    provider: str | None = None
    day: str | None = None
    requests: int
    failed: int
    cancelled: int
    input_tokens: int
    output_tokens: int
    cached_input_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    cost_usd: str
    """Exact, as a decimal number; a JSON number would be read with binary rounding."""
    cost_nano_usd: int
    """The same in whole nano-dollars."""
    unpriced: int
    estimated: int

    @classmethod
    def of(cls, total: UsageSum, by: list[By]) -> "UsageGroup":
        """Write a sum."""
        names = [name for name in cls.model_fields if name not in (*get_args(By), "cost_usd")]
        fields = {name: getattr(total, name) for name in names}
        return cls(**dict(zip(by, total.group, strict=True)), cost_usd=decimal_usd(total.cost_nano_usd), **fields)


class UsageAnswer(BaseModel):
    """Usage by group."""

    since: datetime
    until: datetime
    complete_since: datetime
    """From when on no record is missing: ``since``, unless the ledger let go of some, or began later."""
    data: list[UsageGroup]


class Step(BaseModel):
    """One step of time."""

    at: datetime
    requests: int
    input_tokens: int
    output_tokens: int
    concurrency: float
    """Requests at once, on the mean."""
    peak_concurrency: int


class CapacityAnswer(BaseModel):
    """Tokens and concurrency over time."""

    since: datetime
    until: datetime
    complete_since: datetime
    """As at ``GET /usage``."""
    step_s: int
    data: list[Step]


class UnusualUser(BaseModel):
    """A user whose last 24 hours are far from its own norm."""

    key: str
    user: str
    tokens: int
    usual_tokens: float
    """A day's, the median of the days before."""
    requests: int
    cost_usd: str


class UnusualAnswer(BaseModel):
    """Users far from their norm, the farthest first."""

    data: list[UnusualUser]


@router.get("", response_model=UsageAnswer, responses=_FAILURES)
async def usage(resources: AllResources, context: Context, query: Annotated[UsageQuery, Query()]) -> Response:
    """Sum up what was used. A key sees its own usage, one with `usage: all` everybody's."""
    since, until = query.bounds(_now(resources))
    by = list(dict.fromkeys(query.by))
    sums = await usage_by(_visible(resources, context, since, until), by)
    whole = _at(await complete_since(_source(resources), since, until))
    data = [UsageGroup.of(total, by) for total in sums]
    return json_response(UsageAnswer(since=_at(since), until=_at(until), complete_since=whole, data=data))


@router.get("/capacity", response_model=CapacityAnswer, responses=_FAILURES)
async def usage_capacity(
    resources: AllResources, context: Context, query: Annotated[CapacityQuery, Query()]
) -> Response:
    """Tell tokens and concurrency over time."""
    since, until = query.bounds(_now(resources))
    steps = await capacity(
        _visible(resources, context, since, until), since=since, until=until, step_s=float(query.step_s)
    )
    data = [
        Step(
            at=_at(step.at),
            requests=step.requests,
            input_tokens=step.input_tokens,
            output_tokens=step.output_tokens,
            concurrency=round(step.busy_s / query.step_s, 3),
            peak_concurrency=step.peak,
        )
        for step in steps
    ]
    whole = _at(await complete_since(_source(resources), since, until))
    return json_response(
        CapacityAnswer(since=_at(since), until=_at(until), complete_since=whole, step_s=query.step_s, data=data)
    )


@router.get("/unusual", response_model=UnusualAnswer, responses=_FAILURES)
async def usage_unusual(resources: AllResources, context: Context) -> Response:
    """List users whose last 24 hours are far from their own norm. Takes a key with `usage: all`."""
    if not _sees_all(resources, context):
        raise PermissionDenied("this takes a key that may see everybody's usage: set usage: all for it")
    found = await unusual(_source(resources), now=_now(resources).timestamp())
    data = [
        UnusualUser(
            key=one.key,
            user=one.user,
            tokens=one.tokens,
            usual_tokens=one.usual_tokens,
            requests=one.requests,
            cost_usd=decimal_usd(one.cost_nano_usd),
        )
        for one in found
    ]
    return json_response(UnusualAnswer(data=data))


def _visible(resources: Resources, context: RequestContext, since: float, until: float) -> AsyncIterator[UsageRecord]:
    """Yield the records that the caller may see."""
    principal = None if _sees_all(resources, context) else context.principal.name
    return _source(resources).read(since, until, principal)


def _sees_all(resources: Resources, context: RequestContext) -> bool:
    # Where authentication is off, there is one caller, who runs the service.
    return context.principal.sees_all_usage or resources.settings.auth.enabled is False


def _source(resources: Resources) -> BoundedUsage:
    if resources.usage is None:
        raise StoreUnavailable("no ledger is kept here")
    return resources.usage


def _now(resources: Resources) -> datetime:
    return datetime.fromtimestamp(resources.clock.wall(), UTC)


def _at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
