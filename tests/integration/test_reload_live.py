"""A configuration that changes under running processes: what it takes over, how soon, and what it leaves alone."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from tests.support.fleet import Member
from tests.support.live import simulating
from tests.support.redis_server import own_redis

Show = Callable[[str, list[str]], None]

ALICE, BOB, CAROL = "alice-key-0123456789", "bob-key-0123456789", "carol-key-0123456789"
CLIENTS = 4
"""Callers for each process; each request on a connection of its own, so that every worker gets some."""
REVOKED_WITHIN_S = 2.0
DEADLINE_S = 15.0


@pytest.fixture
def upstream() -> Iterator[str]:
    with simulating("--ttft-ms", "1", "--gap-ms", "0") as address:
        yield address


class Mounted:
    """A file as Kubernetes mounts it: a link to a folder that is replaced as a whole."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._version = 0
        self.path = folder / "config.yaml"
        self.path.symlink_to(folder / "..data" / "config.yaml")

    def write(self, content: str) -> None:
        self._version += 1
        version = self._folder / f"..{self._version}"
        version.mkdir()
        (version / "config.yaml").write_text(content)
        link = self._folder / "..new"
        link.symlink_to(version)
        os.replace(link, self._folder / "..data")  # noqa: PTH105 - a Path's replace would follow the link in its name


class Fleet:
    """Processes that follow one file."""

    def __init__(self, folder: Path, upstream: str, redis: str) -> None:
        self._folder = folder
        self._file = Mounted(folder)
        self._base = {
            "redis": {"url": redis, "timeout_s": 0.5},
            "providers": {
                "openai": {"kind": "openai", "base_url": f"{upstream}/v1", "keys": ["sk-upstream-0123456789"]}
            },
            "models": {"sim": {"routes": [{"provider": "openai"}]}},
            "readiness": {"mode": "off"},
            "auth": {"keys": {"alice": ALICE, "bob": BOB}},
        }
        self.members: list[Member] = []

    async def start(self, *workers: int) -> None:
        """Start processes with so many workers each."""
        self.configure()
        for number, count in enumerate(workers):
            environ = {"LLM_API_SERVER__WORKERS": str(count)}
            self.members.append(Member(self._file.path, self._folder / f"{number}.log", environ))
        await asyncio.gather(*(member.start() for member in self.members))

    def configure(self, **sections: Any) -> None:
        self._file.write(yaml.safe_dump({**self._base, **sections}))

    def break_file(self) -> None:
        self._file.write("providers: {openai: {kind: opnai}}\njobs: {concurrency: many}")

    def log(self, number: int = 0) -> str:
        return (self._folder / f"{number}.log").read_text("utf-8")

    async def logged(self, text: str) -> None:
        """Wait until the first process has said something."""
        async with asyncio.timeout(DEADLINE_S):
            while text not in self.log():  # noqa: ASYNC110 - another process has no event
                await asyncio.sleep(0.02)


@pytest.fixture
async def fleet(tmp_path: Path, upstream: str) -> AsyncIterator[Fleet]:
    with own_redis() as server:
        running = Fleet(tmp_path, upstream, server.url)
        try:
            yield running
        finally:
            await asyncio.gather(*(member.kill() for member in running.members))


async def ask(session: aiohttp.ClientSession, member: Member, key: str, model: str = "sim") -> int:
    async with session.post(
        f"http://127.0.0.1:{member.port}/generate",
        json={"prompt": "x", "model": model, "max_tokens": 5},
        headers={"authorization": f"Bearer {key}", "connection": "close"},
    ) as response:
        await response.read()
        return response.status


class Caller:
    """Calls one process again and again with one key."""

    def __init__(self, session: aiohttp.ClientSession, member: Member, key: str) -> None:
        self._session = session
        self._member = member
        self._key = key
        self.answers: list[tuple[float, int]] = []
        """When a request was sent, and its status."""

    async def call(self) -> None:
        while True:
            sent_at = time.monotonic()
            self.answers.append((sent_at, await ask(self._session, self._member, self._key)))
            await asyncio.sleep(0.02)

    def statuses(self, since: float) -> set[int]:
        return {status for sent_at, status in self.answers if sent_at >= since}


async def test_a_revoked_client_key_is_dead_everywhere_within_two_seconds(fleet: Fleet, show: Show) -> None:
    await fleet.start(1, 1, 2)
    async with aiohttp.ClientSession(trust_env=False) as session:
        callers = {
            key: [Caller(session, member, key) for member in fleet.members for _ in range(CLIENTS)]
            for key in (ALICE, BOB, CAROL)
        }
        tasks = [asyncio.create_task(caller.call()) for group in callers.values() for caller in group]
        async with asyncio.timeout(DEADLINE_S):
            while not all(caller.answers for group in callers.values() for caller in group):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        fleet.configure(auth={"keys": {"alice": ALICE, "carol": CAROL}})
        changed_at = time.monotonic()
        await asyncio.sleep(REVOKED_WITHIN_S + 1)
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(outcome, asyncio.CancelledError), outcome

    def last(key: str, status: int) -> float:
        return max(sent_at for caller in callers[key] for sent_at, got in caller.answers if got == status) - changed_at

    count = sum(len(caller.answers) for group in callers.values() for caller in group)
    show(
        "client keys that change in the file: 3 processes, one of them with 2 workers",
        [
            f"revoked: last answered {last(BOB, 200):.2f} s after the change",
            f"new: last refused {last(CAROL, 401):.2f} s after the change",
            f"untouched: {sorted({status for caller in callers[ALICE] for _, status in caller.answers})} throughout",
            f"{count} requests",
        ],
    )
    since = changed_at + REVOKED_WITHIN_S
    for caller in callers[BOB]:
        assert caller.statuses(since) == {401}
    for caller in callers[CAROL]:
        assert caller.statuses(since) == {200}
    for caller in callers[ALICE]:
        assert caller.statuses(0) == {200}


async def test_streams_go_on_with_what_they_began_with(fleet: Fleet, upstream: str) -> None:
    await fleet.start(1)
    (member,) = fleet.members
    async with aiohttp.ClientSession(trust_env=False) as session:
        address = f"http://127.0.0.1:{member.port}/stream"
        query = {"prompt": "x", "model": "sim;gap_ms=50;tokens=60", "max_tokens": "60"}
        provider = {"kind": "openai", "base_url": f"{upstream}/v1", "keys": ["sk-upstream-0123456789"]}
        models = {"sim*": {"routes": [{"provider": "openai"}]}}
        fleet.configure(models=models)
        await fleet.logged("is taken over: models.sim")
        async with session.get(address, params=query, headers={"authorization": f"Bearer {BOB}"}) as response:
            assert response.status == 200
            events = [await response.content.readuntil(b"\n\n")]
            # Its key, its model and its provider's connections are taken away under it.
            fleet.configure(
                auth={"keys": {"alice": ALICE}},
                models={"other": {"routes": [{"provider": "openai", "model": "sim"}]}},
                providers={"openai": {**provider, "timeouts_s": {"between_tokens": 7}}},
            )
            await fleet.logged("providers.openai.timeouts_s.between_tokens")
            assert await ask(session, member, ALICE, "other") == 200
            assert await ask(session, member, ALICE, "sim") == 422
            assert await ask(session, member, BOB, "other") == 401
            while event := await response.content.readuntil(b"\n\n"):
                events.append(event)
        assert events[-1] == b"data: [DONE]\n\n"
        assert sum(event.startswith(b"data:") for event in events) >= 60


async def test_a_wrong_file_changes_nothing_and_is_told_once(fleet: Fleet) -> None:
    await fleet.start(1)
    (member,) = fleet.members
    async with aiohttp.ClientSession(trust_env=False) as session:
        fleet.break_file()
        await fleet.logged("cannot be used, all stays as it was")
        assert await ask(session, member, BOB) == 200
        fleet.configure(auth={"keys": {"alice": ALICE}}, server={"max_body_bytes": 2_048})
        await fleet.logged("is taken over: auth.keys.bob")
        assert await ask(session, member, BOB) == 401
        assert await ask(session, member, ALICE) == 200
    log = fleet.log()
    assert log.count("cannot be used") == 1
    assert "providers.openai.kind" in log
    assert "jobs.concurrency" in log
    assert "these settings need a restart: server.max_body_bytes" in log
