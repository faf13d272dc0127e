"""Steady load on a release, from inside of its cluster: streams one after the other, and requests by the clock.

A program of its own, in a container of the service's image. After ``SECONDS``, or at SIGTERM, it begins nothing more;
when what runs has ended it prints one JSON object, and fails if anything did not end as it should. It never repeats a
request: what a client would have to repeat is counted as failed.
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter
from typing import Any

import aiohttp

ADDRESS = os.environ["ADDRESS"]
KEY = os.environ["CALLER_KEY"]
MODEL = os.environ.get("MODEL", "gpt-4o-mini")
STREAMS = int(os.environ.get("STREAMS", "20"))
"""Streams that are open at any time."""
STREAM_TOKENS = int(os.environ.get("STREAM_TOKENS", "200"))
"""Output tokens of each; the simulator's pace makes seconds of them."""
REQUESTS_PER_S = float(os.environ.get("REQUESTS_PER_S", "10"))
"""Plain requests that begin in a second, whatever becomes of those before."""
SECONDS = float(os.environ.get("SECONDS", "30"))
LEFT_S = 300
"""Seconds for what runs when the load ends."""
DETAILS = 20
"""Failures that are told in full."""


class Load:
    """Counts what became of everything that was asked."""

    def __init__(self) -> None:
        self.streams: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.longest_request_s = 0.0
        self.details: list[str] = []
        self.stopping = asyncio.Event()
        self._begun_at = time.monotonic()

    def stop(self) -> None:
        """Begin nothing more."""
        self.stopping.set()

    async def run(self) -> None:
        """Ask until stopped; return when all that was begun has ended."""
        # A stream has a connection of its own: aiohttp would repeat a GET that met a connection just closed.
        alone = aiohttp.TCPConnector(force_close=True, limit=0)
        kept = aiohttp.TCPConnector(limit=0)
        headers = {"Authorization": f"Bearer {KEY}"}
        timeout = aiohttp.ClientTimeout(total=LEFT_S)
        async with (
            aiohttp.ClientSession(ADDRESS, connector=alone, headers=headers, timeout=timeout) as streams,
            aiohttp.ClientSession(ADDRESS, connector=kept, headers=headers, timeout=timeout) as requests,
            asyncio.TaskGroup() as tasks,
        ):
            for number in range(STREAMS):
                tasks.create_task(self._stream_on(streams, delay_s=number / max(STREAMS, 1) * 5))
            if REQUESTS_PER_S:
                tasks.create_task(self._request_by_the_clock(requests))

    async def _stream_on(self, session: aiohttp.ClientSession, *, delay_s: float) -> None:
        # Not all at once, so that at any moment some begin, some run and some end.
        if await self._stopped_within(delay_s):
            return
        while not self.stopping.is_set():
            ending, detail = await _stream(session)
            self._count(self.streams, ending, detail)
            # Who is refused does not come back at once, and again, and again.
            await self._stopped_within(0 if ending == "complete" else 1)

    async def _request_by_the_clock(self, session: aiohttp.ClientSession) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        async with asyncio.TaskGroup() as tasks:
            while not await self._stopped_within(due - loop.time()):
                tasks.create_task(self._request(session))
                due += 1 / REQUESTS_PER_S

    async def _request(self, session: aiohttp.ClientSession) -> None:
        begun_at = time.monotonic()
        ending, detail = await _generate(session)
        self.longest_request_s = max(self.longest_request_s, time.monotonic() - begun_at)
        self._count(self.requests, ending, detail)

    async def _stopped_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(max(seconds, 0)):
                await self.stopping.wait()
        except TimeoutError:
            return False
        return True

    def _count(self, counter: Counter[str], ending: str, detail: str) -> None:
        counter[ending] += 1
        if ending != "complete" and len(self.details) < DETAILS:
            self.details.append(f"{time.monotonic() - self._begun_at:.1f} s: {ending}: {detail}")

    def summary(self) -> dict[str, Any]:
        """Return what is printed at the end."""
        return {
            "seconds": round(time.monotonic() - self._begun_at, 1),
            "streams": dict(self.streams),
            "requests": dict(self.requests),
            "longest_request_s": round(self.longest_request_s, 3),
            "details": self.details,
        }


async def _stream(session: aiohttp.ClientSession) -> tuple[str, str]:
    """Read one stream; say how it ended: truncated is the end of a body without an end of the stream."""
    query = {"prompt": "Count.", "model": MODEL, "max_tokens": str(STREAM_TOKENS)}
    tail = b""
    try:
        async with session.get("/stream", params=query) as response:
            if response.status != 200:
                return "refused", f"{response.status} {(await response.text())[:300]}"
            async for piece in response.content.iter_any():
                tail = (tail + piece)[-2000:]
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return ("truncated" if tail else "broken"), repr(error)
    if tail.endswith(b"data: [DONE]\n\n"):
        return "complete", ""
    last = tail.decode(errors="replace").strip().rsplit("\n\n", 1)[-1]
    return ("error" if last.startswith("event: error") else "truncated"), last[-300:]


async def _generate(session: aiohttp.ClientSession) -> tuple[str, str]:
    try:
        async with session.post("/generate", json={"prompt": "Hello.", "model": MODEL, "max_tokens": 8}) as response:
            text = await response.text()
            if response.status != 200:
                return "refused", f"{response.status} {text[:300]}"
            return ("complete", "") if json.loads(text)["text"] else ("truncated", text[:300])
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        return "broken", repr(error)


async def main() -> int:
    """Run; return the exit status."""
    load = Load()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, load.stop)
    loop.call_later(SECONDS, load.stop)
    await load.run()
    summary = load.summary()
    print(json.dumps(summary), flush=True)
    asked = load.streams.total() + load.requests.total()
    return (
        0
        if asked
        and load.streams.total() == load.streams["complete"]
        and load.requests.total() == load.requests["complete"]
        else 1
    )


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
