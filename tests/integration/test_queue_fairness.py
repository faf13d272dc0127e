"""Who floods waits for itself: shares of a provider by tokens and weight, classes, leavers and deadlines in the queue.

Figures are printed at the end of the run.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.support.fleet import fleet, percentile, seconds
from tests.support.live import serving, settings_over, simulating
from tests.support.queues import Backlog, Caller, Outcome, Question, SimulatorHands, open_loop, tally
from tests.support.redis_server import own_redis

FLOOD_S = seconds("LLM_API_FLOOD_S", 6)
"""How long others are measured with the flood, and as long without, half of that before it and half after."""
SHOWN_S = 20.0
"""From so much on, what else the machine does shows less in a 95th percentile, and the bound is that of the Show."""
ONSET_S = 1.0
"""The flood's first second is told of by itself: nobody waited when it took all that was free, and nothing is free
again before the first of its answers has ended."""
OTHERS = 10
"""Enough for more than a hundred times to a first token in ``FLOOD_S``."""
OTHERS_RATE = 2.0
FLOOD_RATE = 100 * OTHERS_RATE
BACKLOG_S = seconds("LLM_API_BACKLOG_S", 7)
TTFT_MS = 300
LIMITS: dict[str, dict[str, int]] = {
    "rate": {"requests_per_minute": 3_000, "request_burst": 50},
    "places": {"concurrency": 50},
    "share": {"concurrency": 10},
    "pair": {"concurrency": 2},
}
"""Of each provider; the models that go there begin with its name."""
WAIT_S = 2.0
"""How long requests may wait; short, so that a flood is soon over when it ends."""
AT_ONCE_S = 0.2
"""What a refusal takes on a machine that does other work too; a place in the queue is waited for for longer."""
TRANSIT_S = 0.02
"""Between a client and the upstream, through the service: what began so soon had its turn before."""
PAIR = {"provider": "pair", "priority": "interactive"}


def key_of(name: str) -> str:
    return f"{name}-key-0123456789"


KEYS: dict[str, dict[str, Any]] = {
    "flood": {},
    **{f"other-{number}": {} for number in range(OTHERS)},
    "short": {},
    "long": {},
    "heavy": {"weight": 3},
    "light": {},
    **{f"batch-{number}": {"priority": "batch"} for number in range(3)},
    "urgent": {},
    "timed": {},
}

Show = Callable[[str, list[str]], None]


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    with simulating("--ttft-ms", "100", "--gap-ms", "2") as address:
        yield address


def sections(upstream: str, **admission: Any) -> dict[str, Any]:
    provider = {"kind": "openai", "base_url": f"{upstream}/v1", "keys": ["sk-upstream-0123456789"]}
    return {
        "providers": {name: {**provider, "limits": limits} for name, limits in LIMITS.items()},
        "models": {f"{name}*": {"routes": [{"provider": name}]} for name in LIMITS},
        "auth": {"enabled": True, "keys": {name: {"key": key_of(name), **more} for name, more in KEYS.items()}},
        "admission": admission,
    }


@asynccontextmanager
async def processes(folder: Path, upstream: str, count: int) -> AsyncIterator[tuple[Caller, SimulatorHands]]:
    """Serve from so many processes over one store."""
    with own_redis(folder) as redis:
        async with (
            SimulatorHands(upstream) as hands,
            fleet(
                folder, simulator=upstream, redis=redis.url, count=count, **sections(upstream, queue_wait_s=WAIT_S)
            ) as members,
            Caller([member.port for member in members]) as caller,
        ):
            await hands.reset()
            yield caller, hands


@asynccontextmanager
async def one_process(
    upstream: str, **admission: Any
) -> AsyncIterator[tuple[Caller, SimulatorHands, CollectorRegistry]]:
    """Serve from a thread of this process, without a store."""
    with serving(settings_over(upstream, **sections(upstream, **admission))) as service:
        port = int(service.base_url.rpartition(":")[2])
        async with SimulatorHands(upstream) as hands, Caller([port]) as caller:
            await hands.reset()
            yield caller, hands, service.resources.metrics.registry


class Neighbours:
    """Small principals that stream at an even pace, and one that may flood."""

    def __init__(self, caller: Caller, provider: str) -> None:
        self.quiet: list[Outcome] = []
        self.onset: list[Outcome] = []
        self.flooded: list[Outcome] = []
        self.flood: list[Outcome] = []
        self._caller = caller
        self._model = f"{provider};ttft_ms={TTFT_MS};gap_ms=15"
        self._chance = random.Random(5)  # noqa: S311 - so that a failure can be had again
        self._asked = 0

    async def run(self) -> None:
        """Go on without the flood, with it, and without it again."""
        await self._others(self.quiet, FLOOD_S / 2)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._send("flood", FLOOD_RATE, self.flood, ONSET_S + FLOOD_S))
            onset = group.create_task(self._others(self.onset, ONSET_S))
            await asyncio.sleep(ONSET_S)
            await self._others(self.flooded, FLOOD_S)
            await onset
        await self._others(self.quiet, FLOOD_S / 2)

    async def _others(self, outcomes: list[Outcome], length_s: float) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(OTHERS):
                group.create_task(self._send(f"other-{number}", OTHERS_RATE, outcomes, length_s))

    async def _send(self, name: str, rate: float, outcomes: list[Outcome], length_s: float) -> None:
        async def ask(due_at: float) -> None:
            self._asked += 1
            # Of all lengths, so that places are not free in bunches, as they are after answers of one length.
            model = f"{self._model};tokens={self._chance.randrange(1, 21)}"
            # The flood is not streamed: it would take more of this machine, which all share, than of the provider.
            question = Question(key_of(name), f"question {self._asked}", model, max_tokens=20, streamed=name != "flood")
            outcomes.append(await self._caller.ask(question, due_at))

        await open_loop(rate, length_s, ask, chance=self._chance)


@pytest.mark.timeout(90 + 8 * FLOOD_S)
@pytest.mark.parametrize("count", [1, 3])
async def test_flood_is_hardly_felt_by_others(upstream: str, tmp_path: Path, show: Show, count: int) -> None:
    lines: list[str] = []
    growths: list[float] = []
    measured: list[Neighbours] = []
    async with processes(tmp_path, upstream, count) as (caller, _):
        warm = Question(key_of("urgent"), "hello", "share", streamed=True)
        await asyncio.gather(*(caller.ask(warm) for _ in range(20)))  # what is done for the first time takes longer
        for provider in ("rate", "places"):
            neighbours = Neighbours(caller, provider)
            await neighbours.run()
            measured.append(neighbours)
            quiet_ms, onset_ms, flooded_ms = (
                1_000
                * percentile([each.first_at - each.due_at for each in outcomes if each.first_at is not None], 0.95)
                for outcomes in (neighbours.quiet, neighbours.onset, neighbours.flooded)
            )
            growths.append(flooded_ms / quiet_ms - 1)
            lines += [
                (
                    f"by {provider} {LIMITS[provider]}: p95 time to first token of others {quiet_ms:.0f} ms, "
                    f"with the flood {flooded_ms:.0f} ms: {100 * growths[-1]:+.1f} % "
                    f"({len(neighbours.quiet)} and {len(neighbours.flooded)} requests); "
                    f"in its first second {onset_ms:.0f} ms"
                ),
                f"the flood's: {dict(tally(neighbours.flood))}",
            ]
    show(f"a flood of {FLOOD_RATE:g} requests/s beside {OTHERS} of {OTHERS_RATE:g}/s, {count} process(es)", lines)
    for neighbours in measured:
        for others in (neighbours.quiet, neighbours.onset, neighbours.flooded):
            assert all(outcome.is_served for outcome in others), tally(others)
        assert len(neighbours.flooded) >= 100
        assert all(outcome.is_served or outcome.is_refusal for outcome in neighbours.flood), tally(neighbours.flood)
        assert not all(outcome.is_served for outcome in neighbours.flood), "there was no overload"
    assert max(growths) <= (0.2 if FLOOD_S >= SHOWN_S else 0.5)


async def contend(*backlogs: Backlog, settling_s: float) -> list[int]:
    """Let backlogged principals contend; return the virtual tokens that each was served, after a time to settle.

    Whoever comes first has all places at first, and how long the answers of a model are has to be learned.
    """
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for backlog in backlogs:
            group.create_task(backlog.run(stop))
        await asyncio.sleep(settling_s)
        began = time.monotonic()
        await asyncio.sleep(BACKLOG_S)
        ended = time.monotonic()
        stop.set()
    for backlog in backlogs:
        assert all(outcome.is_served for outcome in backlog.outcomes), tally(backlog.outcomes)
    return [sum(outcome.virtual_tokens for outcome in backlog.served(began, ended)) for backlog in backlogs]


def asking(name: str, model: str, *, max_tokens: int = 256) -> Callable[[int], Question]:
    return lambda number: Question(key_of(name), f"question {number} of {name}", model, max_tokens=max_tokens)


async def test_backlogged_equals_are_served_alike_whatever_their_answers(upstream: str, show: Show) -> None:
    async with one_process(upstream) as (caller, _, _):
        short = Backlog(caller, asking("short", "share;ttft_ms=50;gap_ms=1;tokens=10"), clients=30)
        long = Backlog(caller, asking("long", "share;ttft_ms=50;gap_ms=1;tokens=200"), clients=10)
        few, many = await contend(short, long, settling_s=4)
    differ = abs(few - many) / max(few, many)
    show(
        "two backlogged equals, answers of 10 and of 200 tokens, max_tokens 256 of both",
        [
            (
                f"served in {BACKLOG_S:g} s (input + 2 x output): {few} in {len(short.outcomes)} answers, {many} in "
                f"{len(long.outcomes)}: they differ by {100 * differ:.1f} %"
            )
        ],
    )
    assert differ <= 0.1


async def test_weights_are_shares(upstream: str, show: Show) -> None:
    async with one_process(upstream) as (caller, _, _):
        heavy = Backlog(caller, asking("heavy", "share;tokens=40"), clients=30)
        light = Backlog(caller, asking("light", "share;tokens=40"), clients=14)
        much, little = await contend(heavy, light, settling_s=2)
    show("weights of 3 and 1", [f"served in {BACKLOG_S:g} s: {much} and {little} tokens: {much / little:.2f} to 1"])
    assert 3 * 0.85 <= much / little <= 3 * 1.15


async def test_interactive_waits_behind_no_batch_request(upstream: str, show: Show) -> None:
    rate = 20.0
    urgent: list[Outcome] = []
    stop = asyncio.Event()
    async with one_process(upstream) as (caller, hands, _):

        async def ask(due_at: float) -> None:
            question = Question(key_of("urgent"), f"question {len(urgent)}", f"share;key=urgent-{due_at};tokens=10")
            urgent.append(await caller.ask(question, due_at))

        def batching(name: str) -> Callable[[int], Question]:
            return lambda number: asking(name, f"share;key={name}-{number};tokens=50")(number)

        batch = [Backlog(caller, batching(f"batch-{number}"), clients=12) for number in range(3)]
        async with asyncio.TaskGroup() as group:
            for backlog in batch:
                group.create_task(backlog.run(stop))
            await asyncio.sleep(1)
            await open_loop(rate, BACKLOG_S, ask, chance=random.Random(6))  # noqa: S311 - any will do
            stop.set()
        calls = await hands.calls()
    assert all(outcome.is_served for outcome in urgent), tally(urgent)
    received: dict[str, float] = {call["model"]: call["received_monotonic_s"] for call in calls}
    started = [call["received_monotonic_s"] for call in calls if "batch" in call["model"]]

    def wait(outcome: Outcome) -> float:
        return received[outcome.question.model] - outcome.sent_at

    waits = [wait(outcome) for outcome in urgent]
    behind = [wait(outcome) for backlog in batch for outcome in backlog.outcomes if outcome.is_served]
    overtaken: list[int] = []
    for outcome in urgent:
        at = received[outcome.question.model]
        overtaken.append(sum(outcome.sent_at + TRANSIT_S < begun < at for begun in started))
    show(
        "interactive requests beside three batch principals with 36 requests at a provider for 10",
        [
            (
                f"{len(urgent)} requests, sent until at the upstream: p95 {1_000 * percentile(waits, 0.95):.1f} ms, "
                f"longest {1_000 * max(waits):.1f} ms (a place is free each 20 ms); batch requests: median "
                f"{1_000 * percentile(behind, 0.5):.1f} ms"
            ),
            (
                f"batch calls that began meanwhile: {sum(overtaken)} in all, at most {max(overtaken)}; "
                f"{len(started)} batch calls"
            ),
        ],
    )
    # Of the two classes in the same seconds: by itself a wait tells how busy the machine is.
    assert percentile(waits, 0.95) <= percentile(behind, 0.5) / 3
    assert sum(overtaken) <= len(urgent) / 20
    assert len(started) >= 100


@pytest.mark.parametrize("streamed", [False, True])
async def test_client_that_leaves_the_queue_gives_its_place_up(upstream: str, show: Show, *, streamed: bool) -> None:
    def question(name: str, *, tokens: int = 3) -> Question:
        model = f"pair;key={name};tokens={tokens};gap_ms=100"
        return Question(key_of("timed"), f"question {name}", model, max_tokens=1_000, streamed=streamed)

    async with one_process(upstream, queue_max=3) as (caller, hands, registry):

        async def waiting(count: int) -> float:
            """Return when so many wait."""
            async with asyncio.timeout(10):
                while registry.get_sample_value("llm_api_queue_waiting", PAIR) != count:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
            return time.monotonic()

        async with asyncio.TaskGroup() as group:
            running = [group.create_task(caller.ask(question(f"runs-{number}", tokens=900))) for number in range(2)]
            while len(await hands.calls()) < 2:  # noqa: ASYNC110 - another process has no event
                await asyncio.sleep(0.005)
            first = group.create_task(caller.ask(question("first")))
            await waiting(1)
            leaver = group.create_task(caller.ask(question("leaver")))
            await waiting(2)
            last = group.create_task(caller.ask(question("last")))
            await waiting(3)
            refused = await caller.ask(question("refused"))
            leaver.cancel()
            left_at = time.monotonic()
            given_up_s = await waiting(2) - left_at
            successor = group.create_task(caller.ask(question("successor")))
            await waiting(3)
            for task in running:
                task.cancel()
            served = await asyncio.gather(first, last, successor)
        models = [str(call["model"]) for call in await hands.calls()]
    show(
        "a client leaves the queue",
        [f"{'stream' if streamed else 'plain'}: place free after {1e3 * given_up_s:.0f} ms"],
    )
    assert refused.is_refusal, refused
    assert given_up_s <= 0.25
    assert all(outcome.is_served for outcome in served), tally(served)
    assert len(models) == 5
    assert not any("leaver" in model or "refused" in model for model in models)


async def test_who_cannot_be_served_in_time_is_refused_at_once(upstream: str, show: Show) -> None:
    model = "pair;ttft_ms=400;tokens=1"
    timed: list[Outcome] = []
    stop = asyncio.Event()
    timeouts_ms = (300, 1_000, 2_500, 6_000)
    async with one_process(upstream) as (caller, hands, _):

        async def ask(due_at: float) -> None:
            number = len(timed)
            question = Question(
                key_of("timed"),
                f"question {due_at}",
                f"{model};key=timed-{due_at}",
                timeout_ms=timeouts_ms[number % len(timeouts_ms)],
            )
            timed.append(await caller.ask(question, due_at))

        backlog = Backlog(caller, asking("timed", f"{model};key=backlog"), clients=10)
        async with asyncio.TaskGroup() as group:
            group.create_task(backlog.run(stop))
            await asyncio.sleep(2)
            await open_loop(8, BACKLOG_S, ask, chance=random.Random(7))  # noqa: S311 - any will do
            stop.set()
        received = {call["model"]: call["received_monotonic_s"] for call in await hands.calls()}
    late = [
        outcome.question.timeout_ms
        for outcome in timed
        if outcome.question.timeout_ms is not None
        and received.get(outcome.question.model, 0.0)
        > outcome.sent_at + outcome.question.timeout_ms / 1_000 + TRANSIT_S
    ]
    refused = [outcome for outcome in timed if not outcome.is_served]
    at_once = [outcome for outcome in refused if outcome.ended_at - outcome.sent_at < AT_ONCE_S]
    hopeless = [outcome for outcome in timed if outcome.question.timeout_ms == timeouts_ms[0]]
    show(
        f"X-Request-Timeout-Ms of {timeouts_ms} at a provider with a queue",
        [
            *(
                f"{timeout_ms} ms: {dict(tally(each for each in timed if each.question.timeout_ms == timeout_ms))}"
                for timeout_ms in timeouts_ms
            ),
            (
                f"{len(at_once)} of {len(refused)} refused within {AT_ONCE_S:g} s, others after "
                f"{sorted(round(each.ended_at - each.sent_at, 2) for each in refused if each not in at_once)} s; "
                f"{len(late)} expired requests reached the upstream"
            ),
        ],
    )
    assert not late
    assert all(outcome.is_refusal and outcome in at_once for outcome in hopeless), tally(hopeless)
    assert len(at_once) >= 0.8 * len(refused)
    for outcome in refused:
        if outcome not in at_once:  # foretold too well: let in, and over when its time was
            assert outcome.ended_at <= outcome.sent_at + (outcome.question.timeout_ms or 0) / 1_000 + 0.1
            assert outcome.status in {503, 504}
    assert any(outcome.is_served for outcome in timed)
    assert all(outcome.is_served or outcome.is_refusal for outcome in backlog.outcomes), tally(backlog.outcomes)
