"""The readiness check: what minimal calls, and real traffic, say about whether traffic should come."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from typing_extensions import override

from service.config import DrainSettings, ModelSettings, ProviderSettings, ReadinessSettings, Settings
from service.config.fingerprint import KeyFingerprints
from service.domain.clock import Deadline, ManualClock
from service.domain.generation import GenerationRequest
from service.domain.probe import Sight, Subject
from service.engine.catalogue import ModelCatalogue
from service.engine.drain import Drain, Stage
from service.engine.prober import Prober
from service.engine.readiness import KEY_LAG_S, LEASE_S, TOGETHER_S, ReadinessCheck, Verdict
from service.errors import (
    InvalidRequest,
    ServiceError,
    UpstreamInvalid,
    UpstreamMisconfigured,
    UpstreamOverloaded,
    UpstreamRejected,
    UpstreamThrottled,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from service.providers.fake import FakeProvider, Script
from service.providers.keys import KeyRing
from service.storage.probe_board import MemoryProbeBoard
from service.telemetry.metrics import Metrics
from tests.support.fake_app import DEADLINE_S, soon, until

READY = Verdict(ready=True, status="ready")
INTERVAL_S = 60.0
PAST_INTERVAL_S = 1.2 * INTERVAL_S
"""So long that a check is due, whatever the jitter."""
PAST_GRACE_S = 20.0

KEY_REFUSED = UpstreamMisconfigured("the key is refused", upstream_status=401, refused="key")
WRONG = [
    KEY_REFUSED,
    UpstreamMisconfigured("not allowed", upstream_status=403, refused="model"),
    UpstreamMisconfigured("no key file holds a key"),
    UpstreamMisconfigured("no such model", upstream_status=404, refused="model"),
    UpstreamRejected("what is that?", upstream_status=400),
    InvalidRequest("this provider cannot chat"),
]
"""What no waiting heals."""
PASSING = [
    UpstreamUnavailable("gone"),
    UpstreamThrottled("slower"),
    UpstreamOverloaded("too much"),
    UpstreamTimeout("late"),
    UpstreamInvalid("what?"),
]
OUT_OF_FUNDS = UpstreamMisconfigured("no money", upstream_status=429, refused="funds")


def named(error: ServiceError) -> str:
    return f"{error.code}-{error.message}"


@dataclass
class Process:
    """One process of a fleet, over fake providers that all processes may share."""

    providers: dict[str, FakeProvider]
    clock: ManualClock
    board: MemoryProbeBoard
    settings: ReadinessSettings
    models: ModelCatalogue
    keys: KeyFingerprints
    metrics: Metrics = field(default_factory=lambda: Metrics(CollectorRegistry()))
    chance: float = 0.0

    def __post_init__(self) -> None:
        self.drain = Drain(DrainSettings())
        self.check = ReadinessCheck(
            routes=self.models.chat_routes,
            keys=self.keys,
            prober=Prober(
                providers=self.providers, metrics=self.metrics, clock=self.clock, price_at=self.models.price_at
            ),
            board=self.board,
            settings=self.settings,
            drain=self.drain,
            metrics=self.metrics,
            clock=self.clock,
            chance=lambda: self.chance,
        )

    @property
    def verdict(self) -> Verdict:
        return self.check.verdict

    @property
    def gauge(self) -> float | None:
        return self.metrics.registry.get_sample_value("llm_api_ready")

    async def after(self, seconds: float) -> Verdict:
        """Look again after some time."""
        self.clock.advance(seconds)
        await self.check.refresh()
        return self.verdict

    def answered(self, provider: str = "one", error: ServiceError | None = None) -> None:
        """Let a caller's call end."""
        assert error is None or not isinstance(error, InvalidRequest)
        self.check.note(provider, error, self.clock.monotonic())  # type: ignore[arg-type] # only members of UpstreamError


@dataclass
class Fleet:
    """Providers, a clock and a board that processes share."""

    one: FakeProvider = field(default_factory=lambda: FakeProvider("one"))
    two: FakeProvider = field(default_factory=lambda: FakeProvider("two"))
    clock: ManualClock = field(default_factory=ManualClock)
    models: dict[str, Any] = field(
        default_factory=lambda: {"m": {"routes": [{"provider": "one", "model": "upstream"}]}}
    )
    keys: dict[str, ProviderSettings] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.board = MemoryProbeBoard(self.clock)
        for name in ("one", "two"):
            given = {"kind": "openai", "keys": ["sk-upstream-0123456789"]}
            self.keys.setdefault(name, ProviderSettings.model_validate(given))

    def process(self, **settings: Any) -> Process:
        models = {name: ModelSettings.model_validate(model) for name, model in self.models.items()}
        return Process(
            providers={"one": self.one, "two": self.two},
            clock=self.clock,
            board=self.board,
            settings=ReadinessSettings.model_validate({"interval_s": INTERVAL_S, **settings}),
            models=ModelCatalogue(models),
            keys=KeyFingerprints(self.keys),
        )

    def fails_with(self, error: ServiceError | None) -> None:
        self.one.script = Script(before=error)


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@pytest.fixture
def two_providers() -> Fleet:
    return Fleet(models={"m": {"routes": [{"provider": "one"}, {"provider": "two", "model": "other"}]}})


def reason(error: ServiceError, provider: str = "one") -> str:
    if isinstance(error, UpstreamRejected):
        return f"{provider}: {error.code}: the provider refuses the smallest call with status {error.upstream_status}"
    return f"{provider}: {error.code}: {error.message}"


def unready(error: ServiceError, provider: str = "one") -> Verdict:
    return Verdict(ready=False, status="unready", reason=reason(error, provider))


def degraded(error: ServiceError, provider: str = "one") -> Verdict:
    return Verdict(ready=True, status="degraded", reason=reason(error, provider))


def starting(error: ServiceError) -> Verdict:
    return Verdict(ready=False, status="starting", reason=reason(error))


# Before the first success


def test_before_the_first_look_it_is_starting(fleet: Fleet) -> None:
    process = fleet.process()
    assert process.verdict == Verdict(ready=False, status="starting", reason="one: not checked yet")
    assert process.gauge == 0
    assert fleet.one.calls == []


async def test_one_minimal_call_makes_it_ready(fleet: Fleet) -> None:
    process = fleet.process()
    assert await process.after(0) == READY
    assert process.gauge == 1
    (call,) = fleet.one.calls
    request = call.request
    assert isinstance(request, GenerationRequest)
    # Models that reason refuse any temperature but their own, and a single token.
    assert (request.max_tokens, request.temperature) == (16, None)
    assert call.upstream_model == "upstream"
    assert call.deadline == Deadline.after(5, fleet.clock)


@pytest.mark.parametrize("error", WRONG, ids=named)
@pytest.mark.parametrize("mode", ["key", "strict"])
async def test_what_no_waiting_heals_keeps_it_unready(fleet: Fleet, mode: str, error: ServiceError) -> None:
    process = fleet.process(mode=mode)
    fleet.fails_with(error)
    assert await process.after(0) == unready(error)
    assert await process.after(PAST_INTERVAL_S) == unready(error)
    assert process.gauge == 0
    fleet.fails_with(None)
    assert await process.after(PAST_INTERVAL_S) == READY


@pytest.mark.parametrize("error", PASSING, ids=named)
async def test_passing_trouble_delays_the_start_and_does_not_prevent_it(fleet: Fleet, error: ServiceError) -> None:
    process = fleet.process()
    fleet.fails_with(error)
    assert await process.after(0) == starting(error)
    assert await process.after(PAST_GRACE_S - 1) == starting(error)
    assert await process.after(1) == degraded(error)
    assert process.gauge == 1


async def test_an_account_without_funds_is_ready_and_degraded(fleet: Fleet) -> None:
    fleet.fails_with(OUT_OF_FUNDS)
    assert await fleet.process().after(0) == degraded(OUT_OF_FUNDS)


async def test_a_key_that_never_worked_is_refused_behind_an_outage_too(fleet: Fleet) -> None:
    process = fleet.process()
    fleet.fails_with(PASSING[0])
    await process.after(0)
    assert (await process.after(PAST_GRACE_S)).status == "degraded"
    fleet.fails_with(KEY_REFUSED)
    assert await process.after(PAST_INTERVAL_S) == unready(KEY_REFUSED)


async def test_what_a_vendor_says_about_the_call_is_shown_to_nobody(fleet: Fleet) -> None:
    fleet.fails_with(UpstreamRejected("your key sk-1 and ping", upstream_status=400, upstream_code="bad_thing"))
    verdict = await fleet.process().after(0)
    assert verdict.reason == (
        "one: upstream_rejected: the provider refuses the smallest call with status 400 (bad_thing)"
    )


# Several keys

MODES = pytest.mark.parametrize("mode", ["key", "strict"])


def with_keys(fleet: Fleet, *keys: str, dead: dict[str, ServiceError]) -> None:
    fleet.one.keys = KeyRing(provider="one", keys=[SecretStr(key) for key in keys], files=(), clock=fleet.clock)
    fleet.one.refusals.update(dead)


@MODES
@pytest.mark.parametrize("refused", [KEY_REFUSED, OUT_OF_FUNDS], ids=named)
@pytest.mark.parametrize("dead", [["k1"], ["k2"], ["k1", "k3"], ["k1", "k2"]], ids=str)
async def test_one_key_that_works_is_enough(fleet: Fleet, mode: str, refused: ServiceError, dead: list[str]) -> None:
    with_keys(fleet, "k1", "k2", "k3", dead=dict.fromkeys(dead, refused))
    process = fleet.process(mode=mode)
    assert await process.after(0) == READY
    for _ in range(20):
        assert await process.after(PAST_INTERVAL_S) == READY


@MODES
async def test_keys_of_which_each_is_refused_are_refused(fleet: Fleet, mode: str) -> None:
    with_keys(fleet, "k1", "k2", dead={"k1": KEY_REFUSED, "k2": KEY_REFUSED})
    process = fleet.process(mode=mode)
    assert await process.after(0) == unready(KEY_REFUSED)
    assert len(fleet.one.calls) == 2
    assert (
        process.metrics.registry.get_sample_value(
            "llm_api_provider_probes_total", {"provider": "one", "outcome": "key_refused"}
        )
        == 1
    )


@pytest.mark.parametrize("first", [KEY_REFUSED, OUT_OF_FUNDS], ids=named)
async def test_a_key_that_lacks_only_funds_outweighs_one_that_is_wrong(fleet: Fleet, first: ServiceError) -> None:
    second = OUT_OF_FUNDS if first is KEY_REFUSED else KEY_REFUSED
    with_keys(fleet, "k1", "k2", dead={"k1": first, "k2": second})
    assert await fleet.process().after(0) == degraded(OUT_OF_FUNDS)


async def test_a_key_that_is_limited_beside_one_that_is_refused_is_no_refusal(fleet: Fleet) -> None:
    limited = UpstreamThrottled("slower", retry_after_s=60)
    with_keys(fleet, "k1", "k2", dead={"k1": KEY_REFUSED, "k2": limited})
    process = fleet.process()
    assert await process.after(0) == starting(limited)


async def test_other_refusals_are_not_tried_with_other_keys(fleet: Fleet) -> None:
    with_keys(fleet, "k1", "k2", dead={"k1": WRONG[3], "k2": WRONG[3]})
    await fleet.process().after(0)
    assert len(fleet.one.calls) == 1


async def test_a_forgiving_ring_is_asked_once_with_each_key(fleet: Fleet) -> None:
    keys = [SecretStr("k1"), SecretStr("k2")]
    fleet.one.keys = KeyRing(provider="one", keys=keys, files=(), clock=fleet.clock, forgiving=True)
    fleet.one.refusals = {"k1": KEY_REFUSED, "k2": KEY_REFUSED}
    assert await fleet.process().after(0) == unready(KEY_REFUSED)
    assert len(fleet.one.calls) == 2


# After the first success


@pytest.mark.parametrize("error", [*WRONG, OUT_OF_FUNDS], ids=named)
async def test_what_worked_and_is_refused_now_is_degraded_at_once(fleet: Fleet, error: ServiceError) -> None:
    process = fleet.process()
    await process.after(0)
    fleet.fails_with(error)
    assert await process.after(PAST_INTERVAL_S) == degraded(error)
    assert process.gauge == 1


@pytest.mark.parametrize("error", PASSING, ids=named)
async def test_one_failed_check_changes_nothing_and_the_second_does(fleet: Fleet, error: ServiceError) -> None:
    process = fleet.process()
    await process.after(0)
    fleet.fails_with(error)
    assert await process.after(PAST_INTERVAL_S) == READY
    assert await process.after(PAST_INTERVAL_S) == degraded(error)
    fleet.fails_with(None)
    assert await process.after(PAST_INTERVAL_S) == READY


@pytest.mark.parametrize("error", PASSING, ids=named)
async def test_in_strict_mode_an_outage_makes_it_unready(fleet: Fleet, error: ServiceError) -> None:
    process = fleet.process(mode="strict")
    await process.after(0)
    fleet.fails_with(error)
    assert await process.after(PAST_INTERVAL_S) == READY
    assert await process.after(PAST_INTERVAL_S) == unready(error)
    assert process.gauge == 0
    fleet.fails_with(None)
    assert await process.after(PAST_INTERVAL_S) == READY


async def test_a_stop_wins_over_everything(fleet: Fleet) -> None:
    process = fleet.process()
    await process.after(0)
    process.drain._reach(Stage.NOTICED)
    assert process.verdict == Verdict(ready=False, status="unready", reason="draining")


@pytest.mark.parametrize("mode", ["key", "passive", "off"])
async def test_the_gauge_follows_a_stop_at_once(fleet: Fleet, mode: str) -> None:
    process = fleet.process(mode=mode)
    await process.after(0)
    async with process.check.running():
        assert process.gauge == 1
        process.drain._reach(Stage.NOTICED)
        assert process.gauge == 0


# Several providers


async def test_every_provider_is_asked_for_a_model_that_it_answers_for(two_providers: Fleet) -> None:
    assert await two_providers.process().after(0) == READY
    assert [call.upstream_model for call in two_providers.one.calls] == ["m"]
    assert [call.upstream_model for call in two_providers.two.calls] == ["other"]


async def test_the_model_of_the_settings_is_the_one_that_is_asked_for(fleet: Fleet) -> None:
    fleet.models["wanted"] = {"routes": [{"provider": "one"}]}
    await fleet.process(model="wanted").after(0)
    assert [call.upstream_model for call in fleet.one.calls] == ["wanted"]


async def test_one_refused_key_of_two_providers_keeps_it_unready(two_providers: Fleet) -> None:
    process = two_providers.process()
    two_providers.two.script = Script(before=KEY_REFUSED)
    assert await process.after(0) == unready(KEY_REFUSED, "two")


async def test_each_provider_that_fails_is_named(two_providers: Fleet) -> None:
    process = two_providers.process()
    await process.after(0)
    two_providers.one.script = Script(before=OUT_OF_FUNDS)
    two_providers.two.script = Script(before=KEY_REFUSED)
    verdict = await process.after(PAST_INTERVAL_S)
    assert verdict.ready
    assert verdict.reason == "one: upstream_misconfigured: no money; two: upstream_misconfigured: the key is refused"


async def test_what_one_provider_shows_does_not_wait_for_another(two_providers: Fleet) -> None:
    two_providers.two.script = Script(stepped=True)
    two_providers.one.script = Script(before=KEY_REFUSED)
    process = two_providers.process()
    task = asyncio.create_task(process.check.refresh())
    call = await two_providers.two.call()
    await soon(call.waiting)
    assert process.verdict == unready(KEY_REFUSED)
    call.step(3)
    await task
    assert process.verdict == unready(KEY_REFUSED)


async def test_a_defect_at_one_provider_does_not_hide_the_other(two_providers: Fleet) -> None:
    process = two_providers.process()
    two_providers.two.script = Script(before=ZeroDivisionError("defect"))  # type: ignore[arg-type] # no ServiceError
    with pytest.raises(ZeroDivisionError):
        await process.after(0)
    assert process.verdict.reason == "two: not checked yet"


@pytest.mark.parametrize("mode", ["key", "strict"])
async def test_without_a_call_to_make_it_is_ready_at_once(mode: str) -> None:
    fleet = Fleet(models={"team/*": {"routes": [{"provider": "one"}]}})
    process = fleet.process(mode=mode)
    assert process.verdict == READY
    assert process.gauge == 1
    assert await process.after(0) == READY
    assert fleet.one.calls == []


# The fleet


async def test_twenty_processes_make_one_call_in_an_interval(fleet: Fleet) -> None:
    processes = [fleet.process() for _ in range(20)]
    for second in range(300):
        for process in processes:
            await process.check.refresh()
            assert process.verdict == READY, second
        fleet.clock.advance(1)
    assert len(fleet.one.calls) == 5


async def test_the_interval_has_jitter_and_is_never_shorter(fleet: Fleet) -> None:
    process = fleet.process()
    process.chance = 0.5
    await process.after(0)
    await process.after(1.1 * INTERVAL_S - 1)
    assert len(fleet.one.calls) == 1
    await process.after(1)
    assert len(fleet.one.calls) == 2


async def test_a_process_is_ready_by_what_another_one_found_out(fleet: Fleet) -> None:
    await fleet.process().after(0)
    fleet.clock.advance(5)
    assert await fleet.process().after(0) == READY
    assert len(fleet.one.calls) == 1


async def test_a_process_that_starts_later_finds_out_by_itself_that_its_key_was_revoked(fleet: Fleet) -> None:
    await fleet.process().after(0)
    fleet.clock.advance(TOGETHER_S + 0.1)
    fleet.fails_with(KEY_REFUSED)
    late = fleet.process()
    assert await late.after(0) == unready(KEY_REFUSED)
    assert await late.after(PAST_INTERVAL_S) == unready(KEY_REFUSED)


async def test_each_later_start_costs_one_check_and_none_where_there_is_traffic(fleet: Fleet) -> None:
    first = fleet.process()
    await first.after(0)
    processes = [first]
    for number in range(1, 4):
        fleet.clock.advance(TOGETHER_S + 0.1)
        processes.append(fleet.process())
        for process in processes:
            assert await process.after(0) == READY
        assert len(fleet.one.calls) == 1 + number
    fleet.clock.advance(TOGETHER_S + 0.1)
    first.answered()
    await first.after(0)
    assert await fleet.process().after(0) == READY
    assert len(fleet.one.calls) == 4


async def test_processes_that_start_within_seconds_share_one_check(fleet: Fleet) -> None:
    processes = []
    for _ in range(20):
        processes.append(fleet.process())
        for process in processes:
            assert await process.after(0) == READY
        fleet.clock.advance(TOGETHER_S / 20)
    assert len(fleet.one.calls) == 1


async def test_a_process_is_unready_by_what_another_one_found_out(fleet: Fleet) -> None:
    older = fleet.process()
    await older.after(0)
    fleet.fails_with(KEY_REFUSED)
    assert (await older.after(PAST_INTERVAL_S)).status == "degraded"
    assert await fleet.process().after(0) == unready(KEY_REFUSED)
    assert len(fleet.one.calls) == 2


async def test_a_check_that_a_dead_process_owes_is_made_by_another(fleet: Fleet) -> None:
    fleet.one.script = Script(stepped=True)
    dying, other = fleet.process(), fleet.process()
    task = asyncio.create_task(dying.check.refresh())
    await soon((await fleet.one.call()).waiting)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    fleet.one.script = Script()
    assert (await other.after(LEASE_S - 1)).status == "starting"
    assert await other.after(1) == READY


async def test_a_success_of_yesterday_makes_nobody_ready(fleet: Fleet) -> None:
    await fleet.process().after(0)
    fleet.clock.advance(12 * 3_600)
    fleet.one.script = Script(stepped=True)
    checking, waiting = fleet.process(), fleet.process()
    task = asyncio.create_task(checking.check.refresh())
    await soon((await fleet.one.call(1)).waiting)
    assert (await waiting.after(0)).status == "starting"
    fleet.one.calls[1].step(3)
    await task
    assert checking.verdict == await waiting.after(1) == READY
    assert len(fleet.one.calls) == 2


# Real traffic


async def test_an_answer_to_anybodys_traffic_saves_the_call(fleet: Fleet) -> None:
    one, other = fleet.process(), fleet.process()
    await one.after(0)
    fleet.clock.advance(INTERVAL_S - 1)
    one.answered()
    await one.after(2)
    assert await other.after(INTERVAL_S - 3) == READY
    assert len(fleet.one.calls) == 1
    await other.after(INTERVAL_S)
    assert len(fleet.one.calls) == 2


async def test_its_own_call_is_no_traffic(fleet: Fleet) -> None:
    process = fleet.process()
    for number in range(1, 4):
        await process.after(INTERVAL_S)
        assert len(fleet.one.calls) == number


async def test_an_answer_heals_a_failed_check_for_all(fleet: Fleet) -> None:
    one, other = fleet.process(mode="strict"), fleet.process(mode="strict")
    fleet.fails_with(OUT_OF_FUNDS)
    await one.after(0)
    assert (await other.after(0)).status == "unready"
    fleet.clock.advance(1)
    one.answered()
    assert await one.after(1) == READY
    assert await other.after(0) == READY
    assert len(fleet.one.calls) == 1


async def test_a_key_that_traffic_finds_refused_is_told_before_the_next_check(fleet: Fleet) -> None:
    one = fleet.process()
    await one.after(0)
    fleet.clock.advance(1)
    one.answered(error=KEY_REFUSED)
    verdict = await one.after(1)
    assert (verdict.ready, verdict.status) == (True, "degraded")
    # One that starts now does not believe the last check, which is younger than its interval.
    assert (await fleet.process().after(0)).status == "unready"
    assert len(fleet.one.calls) == 1
    one.answered()
    assert await one.after(1) == READY


@pytest.mark.parametrize("error", [*PASSING, WRONG[1], WRONG[3]], ids=named)
async def test_other_failures_of_traffic_prove_nothing(fleet: Fleet, error: ServiceError) -> None:
    process = fleet.process()
    await process.after(0)
    process.answered(error=error)
    assert await process.after(2) == READY
    await process.after(PAST_INTERVAL_S)
    assert len(fleet.one.calls) == 2


@pytest.mark.parametrize("mode", ["off", "passive"])
async def test_without_checks_it_is_ready_at_once_and_asks_nobody(fleet: Fleet, mode: str) -> None:
    process = fleet.process(mode=mode)
    assert process.verdict == READY
    assert process.gauge == 1
    async with process.check.running():
        assert asyncio.all_tasks() == {asyncio.current_task()}
    assert fleet.one.calls == []


async def test_passive_tells_of_failed_traffic_and_of_its_end(fleet: Fleet) -> None:
    process = fleet.process(mode="passive")
    process.answered(error=PASSING[0])
    assert process.verdict == degraded(PASSING[0])
    process.answered()
    assert process.verdict == READY


async def test_passive_tells_of_the_last_failure_and_not_of_one_like_it(fleet: Fleet) -> None:
    process = fleet.process(mode="passive")
    for message in ("the provider failed with status 503", "the provider failed with status 500"):
        process.answered(error=UpstreamUnavailable(message))
        assert process.verdict == degraded(UpstreamUnavailable(message))


async def test_a_rejected_request_is_its_callers_affair(fleet: Fleet) -> None:
    process = fleet.process(mode="passive")
    process.answered(error=UpstreamRejected("too long"))
    assert process.verdict == READY


async def test_off_does_not_look_at_traffic(fleet: Fleet) -> None:
    process = fleet.process(mode="off")
    process.answered(error=PASSING[0])
    assert process.verdict == READY


# Other keys and other models


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text("sk-first-0123456789")
    return path


def rotate(path: Path, key: str) -> None:
    path.write_text(key)


@pytest.fixture
def rotating(fleet: Fleet, key_file: Path) -> Process:
    fleet.keys["one"] = ProviderSettings.model_validate({"kind": "openai", "key_files": [key_file]})
    return fleet.process()


async def test_a_rotated_key_is_checked_once_calls_have_it(fleet: Fleet, rotating: Process, key_file: Path) -> None:
    await rotating.after(0)
    rotate(key_file, "sk-second-0123456789")
    await rotating.after(1)
    assert len(fleet.one.calls) == 1
    assert await rotating.after(KEY_LAG_S) == READY
    assert len(fleet.one.calls) == 2


async def test_a_rotation_to_a_wrong_key_degrades_and_its_repair_heals(
    fleet: Fleet, rotating: Process, key_file: Path
) -> None:
    await rotating.after(0)
    rotate(key_file, "sk-second-0123456789")
    fleet.fails_with(KEY_REFUSED)
    await rotating.after(1)
    assert await rotating.after(KEY_LAG_S) == degraded(KEY_REFUSED)
    fleet.fails_with(None)
    rotate(key_file, "sk-third-0123456789")
    await rotating.after(1)
    assert await rotating.after(KEY_LAG_S) == READY


async def test_an_unready_process_turns_ready_with_the_right_key(
    fleet: Fleet, rotating: Process, key_file: Path
) -> None:
    fleet.fails_with(KEY_REFUSED)
    assert (await rotating.after(0)).status == "unready"
    fleet.fails_with(None)
    rotate(key_file, "sk-second-0123456789")
    await rotating.after(1)
    assert await rotating.after(KEY_LAG_S) == READY


async def test_answers_to_the_old_key_prove_nothing_of_the_new_one(
    fleet: Fleet, rotating: Process, key_file: Path
) -> None:
    await rotating.after(0)
    began_at = fleet.clock.monotonic()
    rotate(key_file, "sk-second-0123456789")
    await rotating.after(1)
    rotating.answered()
    await rotating.after(KEY_LAG_S)
    assert len(fleet.one.calls) == 2
    fleet.fails_with(KEY_REFUSED)
    rotating.check.note("one", None, began_at)
    await rotating.after(PAST_INTERVAL_S)
    assert rotating.verdict.status == "degraded"


def configuration(fleet: Fleet) -> Settings:
    return Settings.model_validate({"providers": fleet.keys, "models": fleet.models})


async def reload(process: Process, fleet: Fleet, **readiness: Any) -> None:
    given = {"interval_s": INTERVAL_S, "mode": process.settings.mode, **readiness}
    settings = configuration(fleet).model_copy(update={"readiness": ReadinessSettings.model_validate(given)})
    for part in (process.models, process.check):
        (await part.prepare(settings))()


async def test_a_provider_that_comes_by_a_reload_is_checked_and_cannot_unready_the_fleet(fleet: Fleet) -> None:
    process = fleet.process()
    await process.after(0)
    fleet.models = {"m": {"routes": [{"provider": "one", "model": "upstream"}, {"provider": "two"}]}}
    fleet.two.script = Script(before=KEY_REFUSED)
    await reload(process, fleet)
    assert await process.after(2) == degraded(KEY_REFUSED, "two")
    assert len(fleet.one.calls) == 1


async def test_a_provider_that_is_taken_out_is_not_told_of_any_more(two_providers: Fleet) -> None:
    process = two_providers.process()
    two_providers.two.script = Script(before=OUT_OF_FUNDS)
    assert (await process.after(0)).status == "degraded"
    two_providers.models = {"m": {"routes": [{"provider": "one"}]}}
    await reload(process, two_providers)
    assert process.verdict == READY


async def test_in_passive_mode_a_provider_that_was_taken_out_is_forgotten_whatever_ran_on_it(
    two_providers: Fleet,
) -> None:
    process = two_providers.process(mode="passive")
    process.answered("two", PASSING[0])
    assert process.verdict == degraded(PASSING[0], "two")
    two_providers.models = {"m": {"routes": [{"provider": "one"}]}}
    del two_providers.keys["two"]
    await reload(process, two_providers)
    assert process.verdict == READY
    process.answered("two", PASSING[0])
    assert process.verdict == READY


class HeldBoard(MemoryProbeBoard):
    """Lets who looks wait."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.looking = asyncio.Event()
        self.go_on = asyncio.Event()

    @override
    async def look(self, *arguments: Any, **options: Any) -> Sight:
        self.looking.set()
        await self.go_on.wait()
        return await super().look(*arguments, **options)


@pytest.mark.parametrize("when", ["before it began", "while it waits"])
async def test_a_provider_that_is_taken_out_during_a_look_is_passed_over(two_providers: Fleet, when: str) -> None:
    two_providers.board = board = HeldBoard(two_providers.clock)
    process = two_providers.process()
    subject = Subject("two", "other", process.keys("two"))
    task = asyncio.create_task(process.check.refresh())
    await (soon(board.looking) if when == "while it waits" else asyncio.sleep(0))
    two_providers.models = {"m": {"routes": [{"provider": "one"}]}}
    del two_providers.keys["two"], process.providers["two"]
    await reload(process, two_providers)
    board.go_on.set()
    await task
    assert process.verdict == READY
    assert two_providers.two.calls == []
    assert board.see(subject).probe is None, "who may still have it is told nothing"
    age = process.metrics.registry.get_sample_value("llm_api_provider_probe_age_seconds", {"provider": "two"})
    assert age is None


async def test_the_model_and_the_interval_follow_the_file(fleet: Fleet) -> None:
    process = fleet.process()
    await process.after(0)
    fleet.models["wanted"] = {"routes": [{"provider": "one"}]}
    await reload(process, fleet, model="wanted", interval_s=5)
    await process.after(0)
    assert [call.upstream_model for call in fleet.one.calls] == ["upstream", "wanted"]
    await process.after(6)
    assert len(fleet.one.calls) == 3


async def test_the_mode_follows_the_file_in_all_directions(fleet: Fleet) -> None:
    process = fleet.process(mode="off")
    async with process.check.running():
        assert (process.verdict, fleet.one.calls) == (READY, [])
        fleet.fails_with(OUT_OF_FUNDS)
        await reload(process, fleet, mode="key")
        assert process.verdict == READY, "before the first check nothing is held against it"
        await until(lambda: process.verdict == degraded(OUT_OF_FUNDS))
        await reload(process, fleet, mode="strict")
        assert process.verdict == unready(OUT_OF_FUNDS)
        assert process.gauge == 0
        await reload(process, fleet, mode="passive")
        assert process.verdict == READY
        process.answered(error=PASSING[0])
        assert process.verdict == degraded(PASSING[0])
        await reload(process, fleet, mode="off")
        assert process.verdict == READY
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        fleet.fails_with(None)
        fleet.clock.advance(LEASE_S)
        await reload(process, fleet, mode="strict")
        assert process.verdict == READY
        await until(lambda: len(fleet.one.calls) > 1)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_checks_that_are_switched_on_cannot_unready_a_ready_fleet_but_in_strict_mode(fleet: Fleet) -> None:
    process = fleet.process(mode="off")
    fleet.fails_with(KEY_REFUSED)
    await reload(process, fleet, mode="key")
    assert await process.after(0) == degraded(KEY_REFUSED)
    await reload(process, fleet, mode="strict")
    assert await process.after(0) == unready(KEY_REFUSED)


# In the background


async def test_while_it_runs_it_looks_at_once_and_stops_with_its_context(fleet: Fleet) -> None:
    process = fleet.process()
    fleet.one.script = Script(stepped=True)
    async with asyncio.timeout(DEADLINE_S), process.check.running():
        call = await fleet.one.call()
        assert process.verdict.status == "starting"
        call.step(3)
        await until(lambda: process.verdict == READY)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_call_that_is_under_way_ends_with_the_context(fleet: Fleet) -> None:
    fleet.one.script = Script(stepped=True)
    async with fleet.process().check.running():
        call = await fleet.one.call()
        await soon(call.waiting)
    assert call.cancelled


async def test_it_goes_on_looking_and_a_defect_does_not_end_it(fleet: Fleet) -> None:
    fleet.one.scripts.append(Script(before=ZeroDivisionError("defect")))  # type: ignore[arg-type] # no ServiceError
    process = fleet.process(interval_s=0.001)
    async with process.check.running():
        await asyncio.wait_for(fleet.one.call(0), DEADLINE_S)
        fleet.clock.advance(LEASE_S)
        await until(lambda: process.verdict == READY)
        fleet.clock.advance(1)
        await asyncio.wait_for(fleet.one.call(2), DEADLINE_S)
    assert process.metrics.registry.get_sample_value("llm_api_unhandled_errors_total", {"place": "readiness"}) == 1


# Metrics


async def test_checks_their_tokens_and_their_age_have_metrics_of_their_own(fleet: Fleet) -> None:
    process = fleet.process()

    def value(name: str, **labels: str) -> float | None:
        return process.metrics.registry.get_sample_value(name, {"provider": "one", **labels})

    await process.after(0)
    fleet.fails_with(KEY_REFUSED)
    await process.after(PAST_INTERVAL_S)
    assert value("llm_api_provider_probes_total", outcome="ok") == 1
    assert value("llm_api_provider_probes_total", outcome="key_refused") == 1
    assert value("llm_api_probe_tokens_total") == 8
    assert value("llm_api_provider_probe_age_seconds") == 0
    await process.after(30)
    assert value("llm_api_provider_probe_age_seconds") == 30
    assert not [sample for family in process.metrics.tokens.collect() for sample in family.samples if sample.value]


async def test_what_checks_cost_is_counted_where_the_model_has_a_price(two_providers: Fleet) -> None:
    price = {"input": 2.5, "output": 10, "as_of": "2026-11-01", "source": "the vendor"}
    routes = [{"provider": "one", "model": "upstream"}]
    two_providers.models = {
        "m": {"routes": routes, "price_usd_per_million_tokens": price},
        "n": {"routes": [{"provider": "two"}]},
    }
    process = two_providers.process()
    await process.after(0)
    await process.after(PAST_INTERVAL_S)
    value = process.metrics.registry.get_sample_value
    # 5 tokens of input and 3 of output, twice.
    assert value("llm_api_probe_cost_usd_total", {"provider": "one"}) == pytest.approx(2 * 42.5e-6)
    assert value("llm_api_probe_tokens_total", {"provider": "two"}) == 16
    assert value("llm_api_probe_cost_usd_total", {"provider": "two"}) is None


async def test_a_provider_that_hangs_is_given_up_after_its_time(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.engine.prober.PROBE_TIMEOUT_S", 0.01)
    fleet.one.script = Script(stepped=True)
    verdict = await fleet.process().after(0)
    assert (verdict.status, verdict.reason) == (
        "starting",
        "one: upstream_timeout: the provider did not answer within 0.01 s",
    )
