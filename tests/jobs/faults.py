"""Runs jobs while workers are killed and the store is restarted, and writes down what happened."""

import asyncio
import itertools
import json
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from service.storage.embedded import server_binary
from tests.jobs.candidate import Candidate, Queue, Surroundings
from tests.jobs.history import TERMINAL, History, Seen
from tests.support.live import simulating
from tests.support.redis_server import answers, eventually

PACE = ("--ttft-ms", "60", "--gap-ms", "10")
"""A job of ten tokens takes 150 ms."""
NEW_TEXTS_EVERY_S = 0.2
"""So often the simulator's texts change, so that a job's second run shows by its text."""
SUBMITTERS = 8
WATCHED = 20
"""Jobs that are looked at at once."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done to a candidate."""

    jobs: int = 1_000
    workers: int = 3
    concurrency: int = 1
    kill_every_s: float = 5.0
    store_restarts: int = 1
    cancelled_share: float = 0.05
    cancel_every_s: float = 0.5
    """So that some wait and some run, before and after kills."""
    within_s: float = 170.0
    seed: int = 1


class Store:
    """A server that writes down each change before it acknowledges it, at one address across its restarts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._socket = folder / "store.sock"
        self.url = f"unix://{self._socket}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; return when it answers."""
        binary = server_binary()
        assert binary is not None
        options = ["--port", "0", "--unixsocket", str(self._socket), "--dir", str(self._folder), "--save", ""]
        durable = ["--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction"]
        with (self._folder / "store.log").open("ab") as log:
            self._process = subprocess.Popen([binary, *options, *durable], stdout=log, stderr=log)
        assert eventually(lambda: answers(str(self._socket)), 20)

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@dataclass
class Workers:
    """The processes that do the work."""

    queue: Queue
    log: Path
    running: list["asyncio.subprocess.Process"] = field(default_factory=list)
    crashes: int = 0
    """How many ended by themselves."""
    _count: int = 0

    async def start(self) -> None:
        """Start one more."""
        command = self.queue.worker(self._count)
        self._count += 1
        with self.log.open("ab") as log:
            self.running.append(
                await asyncio.create_subprocess_exec(
                    *command.arguments,
                    env=dict(command.environment),
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    async def keep(self) -> None:
        """Start another for each that ends by itself, as Kubernetes would; the fault is not that of the harness."""
        while True:
            await asyncio.sleep(1.0)
            for process in [process for process in self.running if process.returncode is not None]:
                self.running.remove(process)
                self.crashes += 1
                await self.start()

    def kill(self, process: "asyncio.subprocess.Process") -> None:
        """End one at once, with what it has started."""
        self.signal(process, signal.SIGKILL)
        self.running.remove(process)

    def signal(self, process: "asyncio.subprocess.Process", number: signal.Signals) -> None:
        """Send a signal to one and to what it has started."""
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)

    async def stop(self) -> None:
        """End all."""
        for process in list(self.running):
            self.kill(process)
            await process.wait()


@dataclass
class Scene:
    """A candidate at work, and everything around it."""

    queue: Queue
    store: Store
    workers: Workers
    upstream: str
    surroundings: Surroundings

    async def ledger(self) -> dict[str, list[dict[str, Any]]]:
        """Return the provider's records of its calls, by job."""
        prefix = self.surroundings.model_prefix
        found: dict[str, list[dict[str, Any]]] = {}
        async with httpx.AsyncClient(base_url=self.upstream, timeout=60, trust_env=False) as client:
            lines = (await client.get("/ledger", params={"format": "jsonl", "limit": 200_000})).text.splitlines()
        for record in map(json.loads, lines):
            if str(record["model"]).startswith(prefix):
                found.setdefault(record["model"].removeprefix(prefix), []).append(record)
        return found

    async def calls(self) -> dict[str, list[float]]:
        """Return when the provider was called for each job."""
        ledger = await self.ledger()
        return {job: [record["received_monotonic_s"] for record in records] for job, records in ledger.items()}

    async def change(self, **options: Any) -> None:
        """Change the provider, for the calls to come."""
        async with httpx.AsyncClient(base_url=self.upstream, timeout=60, trust_env=False) as client:
            (await client.post("/control", json=options)).raise_for_status()

    async def look(self, job: str) -> Seen:
        """Ask how a job stands."""
        asked = time.monotonic()
        state = await self.queue.state(job)
        return Seen(job, asked, time.monotonic(), *state)

    async def change_texts(self) -> None:
        """Let no two calls at different times be answered alike."""
        for seed in itertools.count(1):
            with suppress(httpx.HTTPError):
                await self.change(seed=seed)
            await asyncio.sleep(NEW_TEXTS_EVERY_S)


@contextmanager
def durable_store() -> Iterator[Store]:
    """Start a store; end it with the block."""
    with tempfile.TemporaryDirectory(prefix="jobs-") as folder:
        store = Store(Path(folder))
        store.start()
        try:
            yield store
        finally:
            store.kill()


@asynccontextmanager
async def scene(
    candidate: Candidate, *, workers: int, concurrency: int, pace: Sequence[str] = PACE
) -> AsyncIterator[Scene]:
    """Put a candidate between a durable store and a simulator, with its workers."""
    with durable_store() as store, simulating(*pace) as upstream:
        surroundings = Surroundings(store.url, upstream, concurrency)
        async with candidate.opened(surroundings) as queue:
            staff = Workers(queue, Path(os.environ.get("JOBS_LOG", os.devnull)))
            at = Scene(queue, store, staff, upstream, surroundings)
            minding = [asyncio.create_task(staff.keep()), asyncio.create_task(at.change_texts())]
            try:
                for _ in range(workers):
                    await staff.start()
                yield at
            finally:
                for task in minding:
                    task.cancel()
                await asyncio.gather(*minding, return_exceptions=True)
                await staff.stop()


async def faulty_run(candidate: Candidate, plan: Plan) -> History:
    """Run jobs under all the faults of a plan; return what happened."""
    history = History()
    chance = random.Random(plan.seed)  # noqa: S311 - a schedule, repeatable
    names = [f"{number:05d}" for number in range(plan.jobs)]
    async with scene(candidate, workers=plan.workers, concurrency=plan.concurrency) as at:
        doing = [
            asyncio.create_task(_watch(at, history, chance)),
            asyncio.create_task(_kill(at.workers, plan, history, chance)),
            asyncio.create_task(_cancel(at.queue, names, plan, history, chance)),
        ]
        await _submit_all(at.queue, names, history)
        with suppress(TimeoutError):  # what has not ended is told by the history
            async with asyncio.timeout(plan.within_s):
                await _until_all_end(at, names, plan, history)
        for task in doing:
            task.cancel()
        for outcome in await asyncio.gather(*doing, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
        for some in _by(WATCHED, names):
            for seen in await asyncio.gather(*(_surely(at, name) for name in some)):
                history.final[seen.job] = seen
        history.calls = await at.calls()
        history.crashes = at.workers.crashes
    return history


async def _submit_all(queue: Queue, names: Sequence[str], history: History) -> None:
    waiting = iter(names)

    async def submit() -> None:
        for name in waiting:
            await queue.submit(name)
            history.accepted[name] = time.monotonic()

    await asyncio.gather(*(submit() for _ in range(SUBMITTERS)))


async def _until_all_end(at: Scene, names: Sequence[str], plan: Plan, history: History) -> None:
    restarts = 0
    while len(history.final) < plan.jobs:
        if restarts < plan.store_restarts and len(history.final) > plan.jobs // 3:
            restarts += 1
            at.store.kill()
            await asyncio.sleep(1.0)
            at.store.start()
        await _collect(at, names, history)
        await asyncio.sleep(0.2)


async def _kill(workers: Workers, plan: Plan, history: History, chance: random.Random) -> None:
    while True:
        await asyncio.sleep(plan.kill_every_s)
        if not workers.running:
            continue  # all have ended by themselves, and others come at once
        workers.kill(chance.choice(workers.running))
        history.kills.append(time.monotonic())
        await workers.start()


async def _cancel(queue: Queue, names: Sequence[str], plan: Plan, history: History, chance: random.Random) -> None:
    """Cancel in turn one of those that have waited longest, which may run, and any that waits."""
    asked: set[str] = set()
    while len(asked) < plan.jobs * plan.cancelled_share:
        await asyncio.sleep(plan.cancel_every_s)
        still = [
            name for name in names if name in history.accepted and name not in history.final | dict.fromkeys(asked)
        ]
        if not still:
            continue
        name = chance.choice(still[: plan.workers] if len(asked) % 2 else still)
        asked.add(name)
        with suppress(Exception):  # refused while the store is away: then it was not acknowledged
            if await queue.cancel(name):
                history.cancelled[name] = time.monotonic()


async def _watch(at: Scene, history: History, chance: random.Random) -> None:
    while True:
        await asyncio.sleep(0.5)
        some = chance.sample(sorted(history.accepted), min(WATCHED, len(history.accepted)))
        history.seen += await _looks(at, some)


async def _collect(at: Scene, names: Sequence[str], history: History) -> None:
    """Note who has ended, until several in a row have not."""
    for some in _by(WATCHED, [name for name in names if name not in history.final]):
        ended = [seen for seen in await _looks(at, some) if seen.state in TERMINAL]
        history.final |= {seen.job: seen for seen in ended}
        history.seen += ended
        if not ended:
            return


async def _looks(at: Scene, names: Sequence[str]) -> list[Seen]:
    """Ask about several at once; while the store is away there is no answer."""
    found = await asyncio.gather(*(at.look(name) for name in names), return_exceptions=True)
    return [seen for seen in found if isinstance(seen, Seen)]


def _by(size: int, names: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(names), size):
        yield names[start : start + size]


async def _surely(at: Scene, name: str) -> Seen:
    for _ in range(50):
        with suppress(Exception):
            return await at.look(name)
        await asyncio.sleep(0.1)
    now = time.monotonic()
    return Seen(name, now, now, "unknown", None)
