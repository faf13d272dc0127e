"""Puts load on live targets and measures: each function is one workload."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from load.bench.figures import LONG, SHORT, Figure, figure
from load.bench.processes import cpu_s, pss_bytes
from load.bench.rig import Clients, Upstream, chat_body, generate_body
from load.bench.targets import Live, Target
from load.bench.windows import Window

GAP_US = 20_000
PLAIN_AT_ONCE = 16
BURST_AT_ONCE = 16
OPENING_AT_ONCE = 32
SETTLE_S = 0.3
"""After a window, for what the target still writes about its requests."""
LEFT_WITHIN_S = 15.0
CHAT = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Rig:
    """The compiled half, running."""

    upstream: Upstream
    clients: Clients

    def cpu_us(self) -> float:
        """Return what it has taken so far."""
        return 1e6 * (cpu_s(self.upstream.process.pid) + cpu_s(self.clients.process.pid))


def window(rig: Rig, target: Target, live: Live, workload: str, **command: Any) -> Window:
    """Run one command of the clients, and measure around it."""
    pid = live.pid or rig.upstream.process.pid  # nothing between: the upstream is what answers
    rig.upstream.state()  # forgets the lateness of what was before
    also = {name: cpu_s(other) for name, other in live.also.items()}
    before, rig_before = cpu_s(pid), rig.cpu_us()
    report = rig.clients.run(address=live.address, headers=dict(live.headers), **command)
    rig_us = rig.cpu_us() - rig_before
    time.sleep(SETTLE_S)
    return Window(
        target=target.name,
        workload=workload,
        requests=report["requests"],
        failed=report["failed"],
        cpu_us=1e6 * (cpu_s(pid) - before),
        rig_us=rig_us,
        seconds=report["seconds"],
        late_p99_us=rig.upstream.state()["late_us"]["p99"],
        report=report,
        also_us={name: 1e6 * (cpu_s(other) - also[name]) for name, other in live.also.items()},
    )


def plain(rig: Rig, target: Target, live: Live, seconds: float, workload: str = "plain") -> Window:
    """Ask for whole answers, some at a time; ``workload`` may name another of our routes."""
    chat = chat_body(stream=False)
    path = CHAT if workload == "plain" else f"/{workload}"
    body = generate_body(chat) if workload == "generate" else chat
    return window(
        rig,
        target,
        live,
        workload,
        do="closed",
        path=path,
        body=json.dumps(body),
        chunks=1,
        workers=PLAIN_AT_ONCE,
        seconds=seconds,
    )


def streams(rig: Rig, target: Target, live: Live, pace: str, *, chunks: int, seconds: float) -> Window:
    """Ask for streams of so many chunks, ``paced`` or in a ``burst``."""
    gap_us = GAP_US if pace == "paced" else 0
    body = chat_body(stream=True, chunks=chunks, gap_us=gap_us)
    return window(
        rig,
        target,
        live,
        f"{pace}-{chunks}",
        do="closed",
        path=CHAT,
        body=json.dumps(body),
        stream=True,
        chunks=chunks,
        workers=target.paced_at_once if gap_us else BURST_AT_ONCE,
        seconds=seconds,
        spread_us=gap_us,
    )


def one_round(rig: Rig, target: Target, live: Live, scale: float) -> Iterator[Callable[[], Window]]:
    """Give the windows of all that costs CPU time, each to be measured once or again."""
    yield partial(plain, rig, target, live, 2 * scale)
    if target.name.startswith("llm-api"):
        for workload in ("generate", "chat"):
            yield partial(plain, rig, target, live, scale, workload)
    for chunks in (SHORT, LONG):
        yield partial(streams, rig, target, live, "burst", chunks=chunks, seconds=scale)
    # Each worker finishes what it began: one long stream each is the least.
    yield partial(streams, rig, target, live, "paced", chunks=SHORT, seconds=2.5 * scale)
    yield partial(streams, rig, target, live, "paced", chunks=LONG, seconds=0.1)


def warm_up(rig: Rig, live: Live) -> None:
    """Let a target load what it loads late, and make its connections."""
    for stream in (False, True):
        rig.clients.run(
            "closed",
            address=live.address,
            headers=dict(live.headers),
            path=CHAT,
            stream=stream,
            body=json.dumps(chat_body(stream=stream)),
            chunks=1,
            workers=PLAIN_AT_ONCE,
            seconds=0.5,
        )
    time.sleep(SETTLE_S)


def idle(rig: Rig, live: Live, counts: tuple[int, ...]) -> dict[str, Any]:
    """Open idle streams and measure what each keeps in memory; then let all clients leave at once.

    Done on a fresh target: memory that earlier load gave back to the allocator would be used again, unseen.
    """
    found: dict[str, Any] = {}
    pid = live.pid
    before, cpu_before, opened = pss_bytes(pid), cpu_s(pid), 0
    body = json.dumps(chat_body(stream=True, chunks=2, hold=True))
    for count in counts:
        report = rig.clients.run(
            "hold",
            address=live.address,
            headers=dict(live.headers),
            path=CHAT,
            body=body,
            stream=True,
            count=count - opened,
            workers=OPENING_AT_ONCE,
        )
        if report["failed"]:
            found["failed"] = f"{report['failed']} of {count - opened} streams were not opened: {report['failures']}"
            break
        opened = count
        time.sleep(2 * SETTLE_S)
        found[f"idle_{count}_kib"] = (pss_bytes(pid) - before) / 1024 / count
        found[f"open_{count}_us"] = 1e6 * (cpu_s(pid) - cpu_before) / count
    left = rig.clients.run("leave")
    closed_at = rig.upstream.await_no_held(LEFT_WITHIN_S)
    rig.upstream.drop_held()
    found["left"] = opened
    found["closed_after_s"] = (
        None if closed_at is None or not opened else max(0.0, (closed_at - left["left_at_us"]) / 1e6)
    )
    return found


def latency(rig: Rig, target: Target, live: Live, workload: str, *, rate: float, seconds: float) -> Window:
    """Send streams of ``SHORT`` paced chunks at a rate, at times of a Poisson process."""
    body = chat_body(stream=True, chunks=SHORT, gap_us=GAP_US)
    return window(
        rig,
        target,
        live,
        workload,
        do="open",
        path=CHAT,
        body=json.dumps(body),
        stream=True,
        chunks=SHORT,
        rate=rate,
        seconds=seconds,
    )


def half_of_saturation(fixed: Figure, chunk: Figure) -> float:
    """Return the rate of such streams, in 1/s, that takes half of a core."""
    return 0.5e6 / (fixed.value + SHORT * chunk.value)


def added_ms(through: list[Window], direct: list[Window], what: str, percentile: str) -> Figure:
    """Return what a target adds to a percentile, in ms, window by window."""
    return figure(
        [
            (mine.report[what][percentile] - floor.report[what][percentile]) / 1000
            for mine, floor in zip(through, direct, strict=False)
        ],
        [floor.report[what][percentile] / 1000 for floor in direct],
    )
