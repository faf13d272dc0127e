"""Servers that we start ourselves: they come up, are restarted, and never outlive us."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable

import pytest

from service.providers import child
from service.providers.child import ChildFailedError, run_child
from service.providers.simulator import open_simulator

PROGRAM = "tests.support.child_program"
READY = "ready at "


async def pid_at(address: str) -> int | None:
    """Ask the server at ``address`` for its process id; None if nobody is there."""
    host, _, port = address.removeprefix("http://").partition(":")
    try:
        reader, writer = await asyncio.open_connection(host, int(port))
    except ConnectionError:
        return None
    try:
        return int(await reader.read() or 0) or None
    except ConnectionError:
        return None
    finally:
        writer.close()


async def until(condition: Callable[[], Awaitable[bool]], *, seconds: float = 20.0) -> None:
    """Poll a condition of another process, which cannot tell us, until it holds."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - there is no event that crosses processes
            await asyncio.sleep(0.01)


async def is_gone(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as status:  # noqa: ASYNC230, PTH123 - not a file on a disk
            return status.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def test_child_serves_while_the_context_is_open_and_ends_with_it() -> None:
    async with run_child("program", [PROGRAM], ready=READY) as address:
        pid = await pid_at(address)
        assert pid is not None
        assert pid != os.getpid()
    assert await is_gone(pid)
    assert await pid_at(address) is None


async def test_child_that_dies_is_started_again_at_the_same_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "FIRST_BACKOFF_S", 0.01)
    async with run_child("program", [PROGRAM], ready=READY) as address:
        first = await pid_at(address)
        assert first is not None
        os.kill(first, signal.SIGKILL)
        found: list[int | None] = [None]

        async def another_is_there() -> bool:
            found[0] = await pid_at(address)
            return found[0] not in {None, first}

        await until(another_is_there)
    assert found[0] is not None
    assert await is_gone(found[0])


async def test_child_that_fails_at_its_start_says_why() -> None:
    with pytest.raises(ChildFailedError, match=r"(?s)ended at its start with status 1.*no such model"):
        async with run_child("program", [PROGRAM, "--fail", "no such model"], ready=READY):
            raise AssertionError("entered")


async def test_child_that_never_says_where_it_is_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "START_TIMEOUT_S", 0.5)
    with pytest.raises(ChildFailedError, match="was not up"):
        async with run_child("program", [PROGRAM], ready="another word "):
            raise AssertionError("entered")


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
async def test_child_ends_when_its_parent_is_killed() -> None:
    code = (
        "import asyncio, sys\n"
        "from service.providers.child import run_child\n"
        "async def main():\n"
        f"    async with run_child('program', ['{PROGRAM}'], ready='{READY}') as address:\n"
        "        print(address, flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    pid = await pid_at((await parent.stdout.readline()).decode().strip())
    assert pid is not None
    parent.kill()
    await parent.wait()
    await until(lambda: is_gone(pid))


async def test_simulator_is_started_where_no_address_is_given() -> None:
    async with open_simulator() as base_url:
        assert base_url.startswith("http://127.0.0.1:")
        assert base_url.endswith("/v1")
