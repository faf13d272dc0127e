"""The simulator as a process of its own."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.integration.simulator_client import PATIENCE_S, Client, chat, eventually, request


@asynccontextmanager
async def started(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=asyncio.subprocess.PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def address(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), PATIENCE_S)
    words, _, base_url = line.decode().strip().rpartition(" ")
    assert words == "simulator listening on"
    return base_url


async def test_it_says_where_it_listens_serves_and_ends_on_sigterm() -> None:
    async with started("-m", "service.simulator", "--port", "0", "--ttft-ms", "0", "--gap-ms", "0") as process:
        client = await Client.connect(await address(process))
        reply = await client.call(chat("sim;tokens=50;gap_ms=1", stream=True))
        assert reply.whole
        assert reply.events[-1] == "[DONE]"
        client.send(chat("sim-stall", stream=True))
        other = await Client.connect(f"http://127.0.0.1:{client.writer.get_extra_info('peername')[1]}")
        summary = (await other.call(request("/ledger/summary", method="GET"))).json
        assert (summary["finished"], summary["open_calls"]) == (1, 1)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), PATIENCE_S) == 0
        await client.close()
        await other.close()


async def test_its_command_line_sets_limits_and_keys() -> None:
    arguments = ["--port", "0", "--requests-per-minute", "1", "--key", "one", "--key", "two", "--ttft-ms", "0"]
    async with started("-m", "service.simulator", *arguments) as process:
        client = await Client.connect(await address(process))
        headers = {"authorization": "Bearer two"}
        statuses = [(await client.call(chat("sim;gap_ms=0", headers=headers))).status for _ in range(2)]
        assert statuses == [200, 429]
        assert (await client.call(chat())).status == 401
        await client.close()


PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-m", "service.simulator", "--port", "0", "--exit-with-parent"])
print(child.pid, flush=True)
child.wait()
"""


async def test_it_ends_with_its_parent_when_told_to() -> None:
    async with started("-c", PARENT) as parent:
        assert parent.stdout is not None
        pid = int(await asyncio.wait_for(parent.stdout.readline(), PATIENCE_S))
        client = await Client.connect(await address(parent))
        parent.kill()
        await parent.wait()
        # Its end is seen by the connection, whoever inherits the process.
        assert await asyncio.wait_for(client.reader.read(), PATIENCE_S) == b""
        await client.close()

        def gone() -> bool:
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return True
            with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:  # noqa: PTH123 - a file of the kernel
                return stat.read().rpartition(")")[2].split()[0] == "Z"

        await eventually(gone)
