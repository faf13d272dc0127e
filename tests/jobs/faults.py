"""Runs jobs while workers are killed and the store is restarted, and writes down what happened."""

import asyncio
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

import httpx

from service.storage.embedded import server_binary
from tests.jobs.candidate import Candidate, Queue, State, Surroundings
from tests.jobs.history import TERMINAL, History, Seen
from tests.support.live import simulating
from tests.support.redis_server import answers, eventually

PACE = ("--ttft-ms", "60", "--gap-ms", "10")
"""A job of ten tokens takes 150 ms."""
SUBMITTERS = 8
WATCHED = 20
"""Jobs that are looked at in one round."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done to a candidate."""

    jobs: int = 1_000
    workers: int = 3
    concurrency: int = 1
    kill_every_s: float = 5.0
    store_restarts: int = 1
    cancelled_share: float = 0.05
    within_s: float = 300.0
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
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        self.running.remove(process)

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

    async def calls(self) -> dict[str, list[float]]:
        """Return when the provider was called for each job."""
        prefix = self.surroundings.model_prefix
        found: dict[str, list[float]] = {}
        async with httpx.AsyncClient(base_url=self.upstream, timeout=60) as client:
            lines = (await client.get("/ledger", params={"format": "jsonl", "limit": 200_000})).text.splitlines()
        for record in map(json.loads, lines):
            if str(record["model"]).startswith(prefix):
                found.setdefault(record["model"].removeprefix(prefix), []).append(record["received_monotonic_s"])
        return found


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
            try:
                for _ in range(workers):
                    await staff.start()
                keeping = asyncio.create_task(staff.keep())
                yield Scene(queue, store, staff, upstream, surroundings)
            finally:
                keeping.cancel()
                await staff.stop()


async def faulty_run(candidate: Candidate, plan: Plan) -> History:
    """Run jobs under all the faults of a plan; return what happened."""
    history = History()
    chance = random.Random(plan.seed)  # noqa: S311 - a schedule, repeatable
    names = [f"{number:05d}" for number in range(plan.jobs)]
    async with scene(candidate, workers=plan.workers, concurrency=plan.concurrency) as at, asyncio.TaskGroup() as group:
        submitting = group.create_task(_submit_all(at.queue, names, history))
        watching = group.create_task(_watch(at.queue, history, chance))
        killing = group.create_task(_kill(at.workers, plan, history, chance))
        cancelling = group.create_task(_cancel(at.queue, plan, history, chance))
        await submitting
        await cancelling
        restarts = 0
        try:
            async with asyncio.timeout(plan.within_s):
                while len(history.final) < plan.jobs:
                    done = len(history.final)
                    if restarts < plan.store_restarts and done > plan.jobs // 3:
                        restarts += 1
                        at.store.kill()
                        await asyncio.sleep(1.0)
                        at.store.start()
                    await _collect(at.queue, names, history)
                    await asyncio.sleep(0.2)
        except TimeoutError:
            pass  # what has not ended is told by the history
        killing.cancel()
        watching.cancel()
        for name in names:
            history.final[name] = Seen(name, time.monotonic(), *await _whole_state(at.queue, name))
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


async def _kill(workers: Workers, plan: Plan, history: History, chance: random.Random) -> None:
    while True:
        await asyncio.sleep(plan.kill_every_s)
        workers.kill(chance.choice(workers.running))
        history.kills.append(time.monotonic())
        await workers.start()


async def _cancel(queue: Queue, plan: Plan, history: History, chance: random.Random) -> None:
    """Cancel some as they come: those that wait, and the newest, which may run."""
    names: set[str] = set()
    while len(names) < plan.jobs * plan.cancelled_share:
        await asyncio.sleep(0.02)
        open_names = [name for name in history.accepted if name not in names and name not in history.final]
        if not open_names:
            if len(history.accepted) == plan.jobs:
                return
            continue
        name = chance.choice(open_names) if chance.random() < 0.5 else open_names[0]
        names.add(name)
        with suppress(Exception):  # refused while the store is away: then it was not acknowledged
            if await queue.cancel(name):
                history.cancelled[name] = time.monotonic()


async def _watch(queue: Queue, history: History, chance: random.Random) -> None:
    while True:
        await asyncio.sleep(0.5)
        for name in chance.sample(sorted(history.accepted), min(WATCHED, len(history.accepted))):
            with suppress(Exception):  # the store is away
                history.seen.append(Seen(name, time.monotonic(), *await queue.state(name)))


async def _collect(queue: Queue, names: Sequence[str], history: History) -> None:
    """Note who has ended, until several in a row have not."""
    pending = 0
    for name in names:
        if name in history.final:
            continue
        with suppress(Exception):  # the store is away
            state = await queue.state(name)
            if state.state in TERMINAL:
                history.final[name] = Seen(name, time.monotonic(), *state)
                history.seen.append(history.final[name])
                continue
        pending += 1
        if pending > WATCHED:
            return


async def _whole_state(queue: Queue, name: str) -> State:
    for _ in range(50):
        with suppress(Exception):
            return await queue.state(name)
        await asyncio.sleep(0.1)
    return State("unknown", None)
