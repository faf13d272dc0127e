"""SIGTERM while clients are connected, for each server that may run the application, as processes on sockets.

What each server does by itself is the negative control: the same clients, on the same application without its drain.
"""

import asyncio
import json
import random
import signal
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from service.serving.logs import REFUSED_HANDSHAKE
from tests.support.live import simulating
from tests.support.old_servers import folder_of, missing
from tests.support.readers import Read
from tests.support.stops import Program, Reply, Server, Socket, Stream, started

DELAY_S = 2.0
TIMEOUT_S = 25.0
TEXT = "The quick brown fox jumps over the lazy dog. Twice."
"""51 characters, one each 100 ms: it ends about 2 s after the delay has."""
WHY = "the process is stopping: connect again, to reach another"
SHORT = TEXT[:6]
MOMENTS = 12
SIGNAL_AFTER_S = 0.7
"""From the first of the streams that begin at random moments; the last begins twice as late."""
SOON_S = 10.0
"""How long after its last stream a server may need to end: 0.3 s, and on a busy machine Python itself needs seconds to
end. All that a broken stop would wait for takes longer."""

UVICORN = ("-m", "uvicorn", "--host", "127.0.0.1", "--port", "{port}")
GUNICORN = ("-m", "gunicorn", "--bind", "127.0.0.1:{port}", "--no-control-socket")
SERVE = ("-m", "service", "serve", "--host", "127.0.0.1", "--port", "{port}", "--metrics-port", "0")
APP = "service.asgi:app"
TWIN = "tests.support.undrained:app"
OLD = "0.44.0"
AT_ONCE = 4

RAISED_AGAIN = -signal.SIGTERM
"""uvicorn raises the signal again once it has stopped, for whoever waits for it; as process 1 of a container it exits
with 0, since the kernel keeps a default action from that one."""


def uvicorn(name: str, app: str, *options: str, **fields: Any) -> Program:
    return Program(name, (*UVICORN, *options, app), **{"exit_status": RAISED_AGAIN, **fields})


def old_uvicorn(name: str, app: str) -> Program:
    settings = {"PYTHONPATH": str(folder_of(OLD))}
    return uvicorn(name, app, "--ws", "websockets-sansio", settings=settings)


def gunicorn(name: str, app: str, worker: str, *options: str, **fields: Any) -> Program:
    return Program(name, (*GUNICORN, "-k", worker, *options, app), **fields)


DRAINED = {
    program.name: program
    for program in (
        uvicorn("uvicorn", APP),
        uvicorn("uvicorn-graceful-2", APP, "--timeout-graceful-shutdown", "2"),
        old_uvicorn("uvicorn-0.44", APP),
        uvicorn("uvicorn-workers", APP, "--workers", "2", workers=2, exit_status=0),
        gunicorn("gunicorn", APP, "uvicorn_worker.UvicornWorker"),
        Program("serve", SERVE),
        Program("serve-workers", (*SERVE, "--workers", "2"), workers=2),
    )
}
NATIVE = gunicorn("gunicorn-native", APP, "asgi", "--log-level", "debug")
UNDRAINED = {
    program.name: program
    for program in (
        uvicorn("twin-uvicorn", TWIN),
        uvicorn("twin-graceful-1", TWIN, "--timeout-graceful-shutdown", "1"),
        old_uvicorn("twin-0.44", TWIN),
        gunicorn("twin-gunicorn", TWIN, "uvicorn_worker.UvicornWorker", "--graceful-timeout", "1"),
    )
}


@dataclass
class Seen:
    """What the clients of one server saw of its stop."""

    log: str
    stream: Stream
    read: Read
    """What it gave."""
    socket: Socket
    idle_socket: Socket
    unready: Reply
    kept: Reply
    """A request on a connection that was idle at the signal."""
    new: Reply
    """A request on a new connection, before new work is refused."""
    new_socket: Socket | None
    """A WebSocket that was opened then, with a generation that was begun on it."""
    streams: list[tuple[str, Read]]
    """Those that began at random moments around the signal: how each failed, and what it gave."""
    refused: Reply
    refused_chat: Reply
    refused_handshake: int
    health: Reply
    """As new work is refused."""
    exit_status: int
    exit_s: float
    """From the end of the last stream."""


async def stream_at(server: Server, number: int, moment_s: float) -> tuple[str, Read]:
    """Begin a stream of a second after so long; return how it failed, if it did, and what it gave."""
    await asyncio.sleep(moment_s)
    try:
        stream = await server.stream(f"moment-{number}", SHORT)
    except OSError as error:
        return type(error).__name__, Read()
    read = await stream.read()
    return stream.reply.failure, read


async def watch_stop(server: Server) -> Seen:
    kept_connection = await server.connect()
    assert (await kept_connection.ask("/v1/models")).status == 200
    stream = await server.stream("stream", TEXT)
    socket, idle_socket = await Socket.open(server.port), await Socket.open(server.port)
    await socket.send(type="generate", id="a", prompt=f"echo:{TEXT}", model=server.model("socket"))
    await stream.begun.wait()
    await socket.until("delta", "a")
    chance = random.Random(server.program.name)  # noqa: S311 - the same each time, on purpose
    moments_s = [chance.uniform(0, 2 * SIGNAL_AFTER_S) for _ in range(MOMENTS)]
    at_moments = asyncio.gather(*(stream_at(server, *each) for each in enumerate(moments_s)))
    await asyncio.sleep(SIGNAL_AFTER_S)

    server.stop()
    unready = await server.until_unready()
    kept = await kept_connection.ask("/v1/models")
    kept_connection.close()
    new = await server.ask("/v1/models")
    new_socket = await server.socket_or_none()
    if new_socket is not None:
        await new_socket.until("error", None)
        await new_socket.send(type="generate", id="n", prompt="echo:ab", model=server.model("new-socket"))

    refused = await server.until_refusing()
    if server.program.workers > 1:
        await asyncio.sleep(0.5)  # the others heard of it a little later, and there is no asking one of them
    refused_chat = await server.ask_what_is_left("/chat", {"messages": [{"role": "user", "content": "x"}]})
    refused_handshake = (await server.ask_what_is_left("/ws")).status
    health = await server.ask_what_is_left("/health")
    await socket.send(type="generate", id="late", prompt="x", model=server.model("late"))

    for each in (socket, idle_socket, new_socket):
        if each is not None:
            await each.ended()
    read = await stream.read()
    last_end = max(stream.ended_at, socket.ended_at)
    streams = await at_moments
    exit_status = await server.ended()
    return Seen(
        log=server.log,
        stream=stream,
        read=read,
        socket=socket,
        idle_socket=idle_socket,
        unready=unready,
        kept=kept,
        new=new,
        new_socket=new_socket,
        streams=streams,
        refused=refused,
        refused_chat=refused_chat,
        refused_handshake=refused_handshake,
        health=health,
        exit_status=exit_status,
        exit_s=time.monotonic() - last_end,
    )


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    with simulating() as address:
        yield address


@pytest.fixture(scope="module")
def config(upstream: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sigterm") / "config.yaml"
    settings = {
        "server": {"metrics_port": 0},
        "redis": {"url": redis_url, "timeout_s": 5},
        "providers": {"sim": {"kind": "openai", "base_url": f"{upstream}/v1", "keys": ["sk-upstream-0123456789"]}},
        "models": {"sim*": {"routes": [{"provider": "sim"}]}},
        "readiness": {"mode": "off"},
        "drain": {"delay_s": DELAY_S, "timeout_s": TIMEOUT_S},
    }
    path.write_text(yaml.safe_dump(settings))
    return path


def can_run(program: Program) -> bool:
    return "0.44" not in program.name or missing(OLD) is None


@dataclass(frozen=True)
class Plan:
    """One server, what its clients do, and what is set otherwise."""

    program: Program
    watch: Callable[[Server], Awaitable[Any]]
    settings: Mapping[str, str] = field(default_factory=dict)


async def side_by_side(plans: Iterable[Plan], config: Path) -> dict[str, Any]:
    """Watch all servers, some at a time: more would only wait for the processor, and miss what they look for."""
    places = asyncio.Semaphore(AT_ONCE)

    async def one(plan: Plan) -> tuple[str, Any]:
        log = config.with_name(f"{plan.program.name}.log")
        async with places, started(plan.program, config, log, **plan.settings) as server:
            return plan.program.name, await plan.watch(server)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(plan)) for plan in plans if can_run(plan.program)]
    return dict(task.result() for task in tasks)


@pytest.fixture(scope="module")
def found(config: Path) -> dict[str, Any]:
    """What was seen of every server. All at once, since most of the time is waiting.

    In a thread: a fixture of a module has no event loop, and must not touch the tests'.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(side_by_side(PLANS, config))).result()


def calls_of(upstream: str, program: str) -> dict[str, dict[str, Any]]:
    """Return the simulator's records of what one server asked it, by purpose."""
    lines = httpx.get(f"{upstream}/ledger", params={"format": "jsonl", "limit": 10_000}, trust_env=False).text
    found = {}
    for line in lines.splitlines():
        call = json.loads(line)
        name, _, purpose = call["model"].rpartition("key=")[2].partition(":")
        if name == program:
            assert purpose not in found
            found[purpose] = call
    return found


@pytest.fixture(params=DRAINED)
def drained(request: pytest.FixtureRequest, found: dict[str, Any]) -> tuple[Program, Seen]:
    return of(DRAINED[request.param], found)


@pytest.fixture(params=UNDRAINED)
def undrained(request: pytest.FixtureRequest, found: dict[str, Any]) -> tuple[Program, Seen]:
    return of(UNDRAINED[request.param], found)


def of(program: Program, found: dict[str, Any]) -> tuple[Program, Seen]:
    if not can_run(program):
        pytest.skip(missing(OLD) or "")
    return program, found[program.name]


# With the drain


def test_a_running_stream_finishes_with_all_its_events(drained: tuple[Program, Seen]) -> None:
    _, seen = drained
    assert seen.stream.reply.failure == ""
    assert (seen.read.text, seen.read.terminals) == (TEXT, ["done"])


def test_whenever_the_signal_comes_a_stream_is_whole(drained: tuple[Program, Seen]) -> None:
    _, seen = drained
    assert [(failure, read.text, read.terminals) for failure, read in seen.streams] == MOMENTS * [("", SHORT, ["done"])]


def test_a_socket_is_told_then_its_generation_finishes_and_then_it_closes_with_1012(
    drained: tuple[Program, Seen],
) -> None:
    _, seen = drained
    assert (seen.socket.text("a"), seen.socket.terminals("a")) == (TEXT, ["done"])
    assert seen.socket.terminals("late") == ["draining"]
    kinds = [(message["type"], message["id"]) for message in seen.socket.messages]
    assert kinds.count(("error", None)) == 1
    assert kinds.index(("error", None)) < kinds.index(("error", "late")) < kinds.index(("done", "a"))
    assert kinds[-1] == ("done", "a")
    assert seen.socket.close == (1012, WHY)


def test_an_idle_socket_is_told_and_closes_with_1012_when_new_work_is_refused(drained: tuple[Program, Seen]) -> None:
    _, seen = drained
    (message,) = seen.idle_socket.messages
    assert (message["type"], message["id"], message["code"], message["retryable"]) == ("error", None, "draining", True)
    assert seen.idle_socket.close == (1012, WHY)
    assert seen.idle_socket.ended_at < seen.socket.ended_at


def test_what_comes_while_endpoints_notice_is_served_on_connections_that_are_not_kept(
    drained: tuple[Program, Seen],
) -> None:
    _, seen = drained
    for reply in (seen.kept, seen.new):
        assert (reply.failure, reply.status, reply.closes) == ("", 200, True)
    assert seen.new_socket is not None
    assert seen.new_socket.messages[0]["code"] == "draining"
    assert (seen.new_socket.text("n"), seen.new_socket.terminals("n")) == ("ab", ["done"])
    assert seen.new_socket.close == (1012, WHY)


def test_probes_are_answered_all_the_time(drained: tuple[Program, Seen]) -> None:
    _, seen = drained
    assert seen.unready.status == 503
    assert json.loads(seen.unready.body) == {"ready": False, "status": "unready", "reason": "draining"}
    assert seen.health.status == 200


def test_new_work_is_refused_while_a_stream_still_runs(drained: tuple[Program, Seen]) -> None:
    _, seen = drained
    for reply in (seen.refused, seen.refused_chat):
        assert (reply.failure, reply.status, reply.code, reply.closes) == ("", 503, "draining", True)
        assert reply.headers["retry-after"] == "1"
    assert seen.refused_handshake == 503


def test_the_process_ends_in_order_soon_after_its_last_stream(drained: tuple[Program, Seen], upstream: str) -> None:
    program, seen = drained
    assert seen.exit_status == program.exit_status
    assert seen.exit_s < SOON_S
    assert seen.log.count("Application shutdown complete") == program.workers
    log = seen.log.replace(f"ERROR:    {REFUSED_HANDSHAKE}", "").replace(f"[ERROR] {REFUSED_HANDSHAKE}", "")
    for trouble in ("Traceback", "ERROR", "Cancel ", "SIGKILL"):
        assert trouble not in log
    calls = calls_of(upstream, program.name)
    assert calls.keys() == {"stream", "socket", "new-socket", *(f"moment-{number}" for number in range(MOMENTS))}
    assert all(call["finished"] for call in calls.values())


# What cannot finish in time

CUT = {"LLM_API_DRAIN__DELAY_S": "0.2", "LLM_API_DRAIN__TIMEOUT_S": "1"}
LONG = "x" * 600
"""It takes a minute."""


@dataclass
class Cut:
    """What came of what was still running at the end of the drain's patience."""

    log: str
    read: Read
    stream: Stream
    vendor: Stream
    socket: Socket
    plain: Reply
    exit_status: int
    exited_at: float


async def watch_cut(server: Server) -> Cut:
    model = server.model
    stream = await server.stream("stream", LONG)
    message = {"role": "user", "content": f"echo:{LONG}"}
    vendor = await (await server.connect()).stream(
        "/v1/chat/completions", {"model": model("vendor"), "messages": [message], "stream": True}
    )
    plain = asyncio.create_task(server.ask("/generate", {"model": model("plain"), "prompt": f"echo:{LONG}"}))
    socket = await Socket.open(server.port)
    await socket.send(type="generate", id="a", prompt=f"echo:{LONG}", model=model("socket"))
    await socket.until("delta", "a")
    for each in (stream, vendor):
        await each.begun.wait()
    server.stop()
    await socket.ended()
    await vendor.ended()
    read = await stream.read()
    exit_status = await server.ended()
    return Cut(server.log, read, stream, vendor, socket, await plain, exit_status, time.monotonic())


@pytest.mark.parametrize("name", ["cut-serve", "cut-gunicorn", "cut-gunicorn-impatient"])
def test_what_outlasts_the_drain_ends_with_an_error_that_says_so(
    name: str, found: dict[str, Any], upstream: str
) -> None:
    seen: Cut = found[name]
    assert (seen.stream.reply.failure, seen.read.terminals) == ("", ["draining"])
    assert 0 < len(seen.read.text) < len(LONG)
    assert seen.vendor.reply.failure == ""
    vendor = b"".join(seen.vendor.pieces).decode()
    assert vendor.count('"code":"draining"') == 1
    assert "[DONE]" not in vendor
    assert (seen.socket.terminals("a"), seen.socket.close) == (["draining"], (1012, WHY))
    assert (seen.plain.status, seen.plain.code, seen.plain.closes) == (503, "draining", True)
    assert seen.exit_status == DRAINED[name.removeprefix("cut-").removesuffix("-impatient")].exit_status
    for trouble in ("Traceback", "ERROR", "Cancel ", "SIGKILL", "gave up"):
        assert trouble not in seen.log
    calls = calls_of(upstream, name)
    assert calls.keys() == {"stream", "vendor", "socket", "plain"}
    for call in calls.values():
        assert (call["finished"], call["open"]) == (False, False)
        assert call["client_left_monotonic_s"] < seen.exited_at


# A server that handles the signal in a way of its own


@dataclass
class Native:
    """What was seen of one."""

    log: str
    read: Read
    socket: Socket
    exit_status: int


async def watch_native(server: Server) -> Native:
    kept = await server.connect()
    assert (await kept.ask("/v1/models")).status == 200
    stream = await server.stream("stream", TEXT[:20])
    socket = await Socket.open(server.port)
    await socket.send(type="generate", id="a", prompt=f"echo:{TEXT[:20]}", model=server.model("socket"))
    await stream.begun.wait()
    await socket.until("delta", "a")
    server.stop()
    read = await stream.read()
    await socket.until("done", "a")
    await socket.connection.close()
    kept.close()
    return Native(server.log, read, socket, await server.ended())


def test_gunicorns_own_worker_finishes_what_runs_and_says_that_nothing_else_is_done(found: dict[str, Any]) -> None:
    seen: Native = found[NATIVE.name]
    assert (seen.read.text, seen.read.terminals) == (TEXT[:20], ["done"])
    assert (seen.socket.text("a"), seen.socket.terminals("a")) == (TEXT[:20], ["done"])
    assert [message["id"] for message in seen.socket.messages if message["id"] != "a"] == []  # nobody told it
    assert "this server stops by itself at SIGTERM" in seen.log
    assert seen.exit_status == 0


# Ctrl-C


async def watch_interrupt(server: Server) -> tuple[Read, int, float]:
    stream = await server.stream("stream", TEXT[:20])
    await stream.begun.wait()
    server.stop(signal.SIGINT)
    read = await stream.read()
    return read, await server.ended(), time.monotonic() - stream.ended_at


async def watch_impatience(server: Server) -> tuple[Read, int, float]:
    stream = await server.stream("stream", LONG)
    await stream.begun.wait()
    server.stop(signal.SIGINT)
    await server.until_refusing()
    began_at = time.monotonic()
    server.stop(signal.SIGINT)
    read = await stream.read()
    return read, await server.ended(), time.monotonic() - began_at


INTERRUPTED = 130
"""What shells report of a program that SIGINT ended."""
NO_HURRY = {"LLM_API_DRAIN__DELAY_S": "300", "LLM_API_DRAIN__TIMEOUT_S": "300"}


@pytest.mark.parametrize(("name", "status"), [("interrupt-serve", INTERRUPTED), ("interrupt-serve-workers", 0)])
def test_at_the_first_interrupt_no_endpoint_has_to_notice(name: str, status: int, found: dict[str, Any]) -> None:
    read, exit_status, exit_s = found[name]
    assert (read.text, read.terminals, exit_status) == (TEXT[:20], ["done"], status)
    assert exit_s < SOON_S


def test_at_the_second_interrupt_nothing_is_waited_for(found: dict[str, Any]) -> None:
    read, exit_status, exit_s = found["impatience"]
    assert (read.terminals, exit_status) == ([], INTERRUPTED)
    assert exit_s < SOON_S


# Without it: the same clients see what each server does by itself


def test_without_the_drain_a_socket_closes_untold_in_the_midst_of_its_generation(
    undrained: tuple[Program, Seen],
) -> None:
    _, seen = undrained
    assert seen.socket.terminals("a") == []
    assert TEXT.startswith(seen.socket.text("a")) != seen.socket.text("a").endswith(TEXT)
    assert seen.idle_socket.messages == []
    assert (seen.socket.close, seen.idle_socket.close) == ((1012, ""), (1012, ""))


def test_without_the_drain_nobody_is_served_from_the_signal_on(undrained: tuple[Program, Seen]) -> None:
    _, seen = undrained
    for reply in (seen.kept, seen.new, seen.unready, seen.refused, seen.health):
        assert (reply.status, reply.failure != "") == (0, True)
    assert any(failure for failure, _ in seen.streams)
    assert (seen.new_socket, seen.refused_handshake) == (None, 0)


def test_without_the_drain_a_stream_has_the_luck_of_its_server(undrained: tuple[Program, Seen], upstream: str) -> None:
    program, seen = undrained
    if program.name == "twin-uvicorn":
        assert (seen.read.text, seen.read.terminals) == (TEXT, ["done"])
        return
    assert seen.stream.reply.failure != ""  # the end of a body that is not whole
    assert seen.read.terminals == []
    assert TEXT.startswith(seen.read.text)
    assert not calls_of(upstream, program.name)["stream"]["finished"]


def test_without_the_drain_the_pools_close_under_a_stream_that_is_cut(found: dict[str, Any]) -> None:
    log = found["twin-graceful-1"].log
    assert log.index("Cancel 1 running task(s)") < log.index("Waiting for application shutdown")
    assert "CancelledError" in log[log.index("Waiting for application shutdown") :]


PLANS = (
    *(Plan(program, watch_stop) for program in (*DRAINED.values(), *UNDRAINED.values())),
    *(Plan(replace(DRAINED[name], name=f"cut-{name}"), watch_cut, CUT) for name in ("serve", "gunicorn")),
    # It kills after 10 s, which is less than a drain would take by the settings.
    Plan(
        gunicorn("cut-gunicorn-impatient", APP, "uvicorn_worker.UvicornWorker", "--graceful-timeout", "10"),
        watch_cut,
        {"LLM_API_DRAIN__DELAY_S": "0.2"},
    ),
    Plan(NATIVE, watch_native),
    *(
        Plan(replace(DRAINED[name], name=f"interrupt-{name}"), watch_interrupt, NO_HURRY)
        for name in ("serve", "serve-workers")
    ),
    Plan(replace(DRAINED["serve"], name="impatience"), watch_impatience, NO_HURRY),
)
