"""What a peer can send over a connection: whole answers are read whole, all else is an error of ours."""

import asyncio
import gc
import gzip
import itertools
import math
import socket
import ssl
import subprocess
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import override
from yarl import URL

from service.providers import http1
from service.providers.dial import ConnectFailedError, Dialer, Origin, default_tls
from service.providers.http1 import HELD_BYTES, Connection, ConnectionLostError, NotHttpError, request_head
from service.providers.http_pool import HttpPool
from service.providers.inflate import STEP_BYTES, Inflater

OK = b"HTTP/1.1 200 OK\r\n"
PLAIN = OK + b"content-length: 5\r\n\r\nhello"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n2;why=not\r\nhe\r\n3\r\nllo\r\n0\r\nx-sum: 5\r\n\r\n"
REQUEST = request_head("POST / HTTP/1.1", {"Host": "peer"}, 2)


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


@dataclass
class Peer:
    """Sends what it was given as soon as a request came; then closes, or holds the connection."""

    pieces: Sequence[bytes]
    closes: bool = False
    port: int = 0
    left: asyncio.Event = field(default_factory=asyncio.Event)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await self._answer(reader, writer)
        self.left.set()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            self.requests.append(await reader.readuntil(b"\r\n\r\n") + await reader.readexactly(2))
            self.asked.set()
            for piece in self.pieces:
                writer.write(piece)
                await asyncio.sleep(0)
            if self.closes:
                return


@asynccontextmanager
async def peer(*pieces: bytes, closes: bool = False) -> AsyncIterator[Peer]:
    scripted = Peer(pieces, closes)
    async with listening(scripted.serve) as scripted.port:
        yield scripted


@asynccontextmanager
async def listening(serve: Serve, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Serve on a port; at the end nothing of it is left."""
    tasks: set[asyncio.Task[None]] = set()

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.create_task(run(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await asyncio.sleep(0.01)  # a task that was just made must reach its own clean-up
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def soon(seconds: float = 5.0) -> float:
    return asyncio.get_running_loop().time() + seconds


async def dialled(to: Peer) -> Connection:
    return await Dialer(connect_s=5)(Origin("127.0.0.1", to.port, tls=False), soon())


async def read_all(connection: Connection, seconds: float = 5.0) -> bytes:
    body = b""
    while piece := await connection.read(soon(seconds)):
        body += piece
    return body


async def head_and_body(connection: Connection, seconds: float = 5.0) -> bytes:
    await connection.head(soon(seconds))
    return await read_all(connection, seconds)


async def ask(connection: Connection) -> bytes:
    connection.send(REQUEST, b"{}")
    return await head_and_body(connection)


class Wire(asyncio.Transport):
    """A transport without a socket, for what only concerns bytes."""

    closed = False

    @override
    def is_closing(self) -> bool:
        return self.closed

    @override
    def abort(self) -> None:
        self.closed = True

    @override
    def get_write_buffer_size(self) -> int:
        return 0

    reads = True

    @override
    def pause_reading(self) -> None:
        self.reads = False

    @override
    def resume_reading(self) -> None:
        self.reads = True

    @override
    def writelines(self, list_of_data: object) -> None:
        pass


def fed(pieces: Sequence[bytes], *, eof: bool = False) -> tuple[Connection, bytes | Exception]:
    """Feed an answer; return the body, or what was raised. Never waits: what is not there by then is a TimeoutError."""

    async def run() -> tuple[Connection, bytes | Exception]:
        connection = Connection(asyncio.get_running_loop())
        wire = Wire()
        connection.connection_made(wire)
        connection.send(REQUEST, b"{}")
        for piece in pieces:
            if not wire.closed:
                connection.data_received(piece)
        if eof and not wire.closed:
            connection.eof_received()
        try:
            await connection.head(-math.inf)
            return connection, await read_all(connection, -math.inf)
        except (TimeoutError, NotHttpError, ConnectionLostError) as exc:
            return connection, exc

    return asyncio.run(run())


@pytest.mark.parametrize(
    "answer", [PLAIN, CHUNKED, b"HTTP/1.1 100 Continue\r\n\r\n" + PLAIN, PLAIN.replace(b"\r", b"")]
)
def test_answer_reads_alike_however_it_is_split(answer: bytes) -> None:
    splits = [[answer[:at], answer[at:]] for at in range(1, len(answer))]
    for pieces in ([answer], [bytes([byte]) for byte in answer], *splits):
        connection, body = fed(pieces)
        assert body == b"hello"
        assert connection.status == 200
        assert connection.reusable


@pytest.mark.parametrize("answer", [PLAIN, CHUNKED, b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + CHUNKED])
def test_answer_that_ends_anywhere_before_its_end_is_broken_off(answer: bytes) -> None:
    for at in range(len(answer)):
        connection, body = fed([answer[:at]], eof=True)
        assert isinstance(body, ConnectionLostError), at
        assert not connection.reusable


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        OK + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        OK + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
        OK + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        OK + b"content-length: -1\r\n\r\n",
        OK + b"content-length: 99999999999999999999999\r\n\r\n",
        OK + b"transfer-encoding: gzip\r\n\r\nhello",
        OK + b"transfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        OK + b"transfer-encoding: chunked\r\n\r\nxyz\r\n",
        OK + b"transfer-encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFF\r\n",
        OK + b"content-encoding: br\r\ncontent-length: 5\r\n\r\nhello",
        OK + b"content-encoding: gzip\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        OK + b"x: " + b"y" * (http1.MAX_HEAD_BYTES + 1),
        OK + b"x: " + b"y" * (http1.MAX_HEAD_BYTES + 1) + b"\r\ncontent-length: 0\r\n\r\n",
        OK + b"x: y\r\n" * (http1.MAX_FIELDS + 1) + b"content-length: 0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 4000,
    ],
)
def test_what_is_not_http_or_too_much_of_it_is_refused(answer: bytes) -> None:
    for pieces in ([answer], [answer[at : at + 1000] for at in range(0, len(answer), 1000)]):
        connection, body = fed(pieces)
        assert isinstance(body, NotHttpError)
        assert not connection.reusable
        assert not connection.is_open


def test_endless_trailer_is_refused_after_a_body() -> None:
    _, body = fed([CHUNKED[:-4], *[b"y" * 1000] * 100])
    assert isinstance(body, NotHttpError)


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
def test_status_without_a_body_ends_with_its_head(status: bytes) -> None:
    connection, body = fed([b"HTTP/1.1 " + status + b"\r\ncontent-length: 5\r\n\r\n"])
    assert body == b""
    assert connection.reusable


def test_body_without_a_length_ends_with_the_connection() -> None:
    answer = OK + b"content-type: text/plain\r\n\r\nhel"
    connection, body = fed([answer, b"lo"], eof=True)
    assert body == b"hello"
    assert not connection.reusable
    assert isinstance(fed([answer, b"lo"])[1], TimeoutError)


def test_body_without_a_length_is_broken_off_by_a_reset() -> None:
    async def run() -> None:
        connection = Connection(asyncio.get_running_loop())
        connection.connection_made(Wire())
        connection.send(REQUEST, b"{}")
        connection.data_received(OK + b"\r\nhel")
        connection.connection_lost(ConnectionResetError())
        assert await connection.read(-math.inf) == b"hel"
        with pytest.raises(ConnectionLostError, match="ConnectionResetError"):
            await connection.read(-math.inf)

    asyncio.run(run())


@pytest.mark.parametrize(
    "surplus", [b"x", b"\0" * 70_000, PLAIN, b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n"]
)
def test_bytes_behind_the_end_take_nothing_back_and_end_the_connection(surplus: bytes) -> None:
    for pieces in ([PLAIN + surplus], [PLAIN, surplus]):
        connection, body = fed(pieces)
        assert body == b"hello"
        assert not connection.reusable


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nconnection: close\r\n", b"HTTP/1.0 200 OK\r\n"])
def test_connection_that_the_peer_does_not_keep_is_not_kept(head: bytes) -> None:
    connection, body = fed([head + b"content-length: 5\r\n\r\nhello"])
    assert body == b"hello"
    assert not connection.reusable


def test_headers_are_read_as_they_are_meant() -> None:
    head = OK + b"X-Reset: 5\xc2\xb5s\r\nx-reset: 6s\r\nFolded: a\r\n b\r\nx-raw: \xff\r\ncontent-length: 0\r\n\r\n"
    connection, body = fed([head])
    assert body == b""
    assert connection.headers["x-reset"] == "5\u00b5s", "of a repeated header the first, as UTF-8"
    assert connection.headers["folded"] == "a b"


def test_space_behind_a_value_is_none_of_it() -> None:
    chunked = OK + b"transfer-encoding: chunked  \r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    connection, body = fed([chunked])
    assert body == b"hello"
    assert connection.headers["transfer-encoding"] == "chunked"


@pytest.mark.parametrize(
    "interim",
    [b"104 Odd\r\ncontent-length: 4\r\n\r\nEVIL", b"199 Odd\r\ntransfer-encoding: chunked\r\n\r\n1\r\nE\r\n0\r\n\r\n"],
)
def test_body_of_an_interim_answer_is_not_put_before_the_answers_own(interim: bytes) -> None:
    connection, body = fed([b"HTTP/1.1 " + interim + PLAIN])
    assert isinstance(body, NotHttpError)
    assert not connection.reusable


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_compressed_body_is_unpacked_in_bounded_steps(pack: Callable[[bytes], bytes]) -> None:
    text = b"\0" * (5 * STEP_BYTES)
    packed = pack(text)
    head = OK + b"content-encoding: %s\r\n" % (b"gzip" if pack is gzip.compress else b"deflate")
    whole = head + b"content-length: %d\r\n\r\n%s" % (len(packed), packed)
    assert fed([whole])[1] == text
    assert fed([whole[at : at + 7] for at in range(0, len(whole), 7)])[1] == text
    cut = head + b"content-length: %d\r\n\r\n%s" % (len(packed) - 9, packed[:-9])
    assert isinstance(fed([cut])[1], ConnectionLostError)


def test_compressed_body_may_have_several_members() -> None:
    head = OK + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n"
    both = gzip.compress(b"hel") + gzip.compress(b"lo")
    whole = head % len(both) + both
    assert fed([whole])[1] == b"hello"
    assert fed([whole[at : at + 3] for at in range(0, len(whole), 3)])[1] == b"hello"
    assert isinstance(fed([head % (len(both) - 3) + both[:-3]])[1], ConnectionLostError)


def test_what_stands_behind_a_compressed_body_is_not_kept() -> None:
    packed, behind = gzip.compress(b"hello"), b"z" * 50_000
    inflater = Inflater()
    assert inflater.step(packed) == b"hello"
    for _ in range(20):
        assert inflater.step(behind) == b""
    assert len(inflater._stream.unused_data) <= len(behind)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([PLAIN, CHUNKED, OK + b"\r\nhello", b"HTTP/1.1 100 Continue\r\n\r\n" + CHUNKED]),
    st.lists(st.tuples(st.integers(0, 120), st.binary(max_size=4)), max_size=4),
    st.lists(st.integers(0, 130), max_size=8),
    st.booleans(),
)
def test_no_bytes_hang_or_raise_other_than_errors_of_ours(
    answer: bytes,
    changes: list[tuple[int, bytes]],
    cuts: list[int],
    eof: bool,  # noqa: FBT001
) -> None:
    for at, by in changes:
        answer = answer[:at] + by + answer[at + 1 :]
    bounds = [0, *sorted(cuts), len(answer)]
    pieces = [answer[a:b] for a, b in itertools.pairwise(bounds) if a < b]
    assert isinstance(fed(pieces, eof=eof)[1], bytes | Exception)


# Over sockets.


@pytest.mark.parametrize("answer", [PLAIN, CHUNKED])
async def test_connection_carries_one_answer_after_the_other(answer: bytes) -> None:
    async with peer(answer) as up:
        connection = await dialled(up)
        for _ in range(3):
            assert await ask(connection) == b"hello"
            assert connection.reusable
        connection.close()
    assert up.connections == 1
    assert up.requests == [REQUEST + b"{}"] * 3


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 2", OK, OK + b"content-length: 5\r\n\r\n", PLAIN[:-1]])
async def test_peer_that_stalls_anywhere_is_a_timeout_and_closing_tells_it(sent: bytes) -> None:
    async with peer(sent) as up:
        connection = await dialled(up)
        connection.send(REQUEST, b"{}")
        with pytest.raises(TimeoutError):
            await head_and_body(connection, 0.05)
        assert not connection.reusable
        connection.close()
        await asyncio.wait_for(up.left.wait(), 5)


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 2", OK, OK + b"content-length: 5\r\n\r\n", PLAIN[:-1]])
async def test_peer_that_leaves_anywhere_has_broken_off(sent: bytes) -> None:
    async with peer(sent, closes=True) as up:
        with pytest.raises(ConnectionLostError):
            await ask(await dialled(up))


async def test_connection_that_timed_out_is_freed_without_the_garbage_collector() -> None:
    async with peer(OK) as up:
        connection = await dialled(up)
        connection.send(REQUEST, b"{}")
        waiter = ref(connection.wait(asyncio.get_running_loop().time()))
        gc.disable()
        try:
            await asyncio.sleep(0.01)
            assert waiter() is None
        finally:
            gc.enable()
        connection.close()


async def test_what_has_come_is_read_without_waiting() -> None:
    async with peer(PLAIN) as up:
        connection = await dialled(up)
        connection.send(REQUEST, b"{}")
        assert connection.ready() is None
        await connection.wait(soon())
        assert connection.ready() == b"hello"
        assert connection.ready() == b""


async def test_cancelled_wait_leaves_a_connection_that_closes_at_once() -> None:
    async with peer(OK) as up:
        connection = await dialled(up)
        task = asyncio.create_task(ask(connection))
        await up.asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        connection.close()
        await asyncio.wait_for(up.left.wait(), 5)


async def test_body_that_nobody_reads_is_held_only_in_part() -> None:
    size = 20_000_000
    async with peer(OK + b"content-length: %d\r\n\r\n" % size, *[b"x" * 100_000] * 200) as up:
        connection = await dialled(up)
        connection.send(REQUEST, b"{}")
        await connection.head(soon())
        most = 0
        for _ in range(200):
            await asyncio.sleep(0.001)
            most = max(most, connection._held)
        assert most <= http1.HELD_BYTES + 262_144, "one read more than the bound"
        assert len(await read_all(connection)) == size
        assert connection.reusable
        connection.close()


async def test_head_of_a_request_that_holds_a_line_end_is_not_written() -> None:
    for value in ("a\r\nb: c", "a\nb", "a\rb", "a\0b"):
        with pytest.raises(ValueError, match="end of a line"):
            request_head("POST / HTTP/1.1", {"x": value}, 0)


# The pool.


async def test_what_nobody_read_does_not_keep_the_next_answer_away() -> None:
    connection, wire = Connection(asyncio.get_running_loop()), Wire()
    connection.connection_made(wire)
    connection.send(REQUEST, b"{}")
    connection.data_received(OK + b"content-length: %d\r\n\r\n" % (2 * HELD_BYTES) + b"x" * (2 * HELD_BYTES))
    assert connection.over
    paused = wire.reads
    assert not paused
    origin = Origin("127.0.0.1", 1, tls=False)
    pool = HttpPool(dial=Dialer(connect_s=5))
    pool.give(origin, connection)
    assert wire.reads
    assert pool.take(origin) is connection
    connection.send(REQUEST, b"{}")
    connection.data_received(PLAIN)
    assert await head_and_body(connection) == b"hello"
    pool.close()


async def test_calls_share_the_look_up_of_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    async with peer(PLAIN) as up:
        loop = asyncio.get_running_loop()
        asked: list[str] = []

        async def look_up(host: str, *_: Any, **__: Any) -> list[Any]:
            if host.endswith(".test"):  # uvloop looks addresses up too
                asked.append(host)
            await asyncio.sleep(0.02)
            if host == "nowhere.test":
                raise socket.gaierror
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", up.port))]

        monkeypatch.setattr(loop, "getaddrinfo", look_up)
        dial = Dialer(connect_s=5)
        origin = Origin("shared.test", up.port, tls=False)
        first = asyncio.create_task(dial(origin, soon()))
        others = [asyncio.create_task(dial(origin, soon())) for _ in range(20)]
        await asyncio.sleep(0.01)
        first.cancel()  # who asked first may leave
        for connection in await asyncio.gather(*others):
            connection.close()
        assert asked == ["shared.test"]
        lost = [dial(Origin("nowhere.test", up.port, tls=False), soon()) for _ in range(3)]
        assert {type(found) for found in await asyncio.gather(*lost, return_exceptions=True)} == {ConnectFailedError}
        assert asked == ["shared.test", "nowhere.test"]


def pool_for(up: Peer) -> tuple[HttpPool, Origin]:
    return HttpPool(dial=Dialer(connect_s=5)), Origin("127.0.0.1", up.port, tls=False)


async def test_pool_gives_the_connection_that_is_idle_longest() -> None:
    async with peer(PLAIN) as up:
        pool, origin = pool_for(up)
        first, second = await pool.dial(origin, soon()), await pool.dial(origin, soon())
        for connection in (first, second):
            await ask(connection)
            pool.give(origin, connection)
        assert pool.take(origin) is first
        assert pool.take(origin) is second
        assert pool.take(origin) is None
        pool.close()
        for connection in (first, second):
            pool.give(origin, connection)
            assert not connection.is_open, "what comes back to a closed pool is closed"


@pytest.mark.parametrize("then", [b"", b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n"])
async def test_idle_connection_that_the_peer_closes_or_speaks_on_is_never_used(then: bytes) -> None:
    go = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(PLAIN)
        await go.wait()
        writer.write(then)
        writer.close()

    async with listening(serve) as port:
        pool = HttpPool(dial=Dialer(connect_s=5))
        origin = Origin("127.0.0.1", port, tls=False)
        connection = await pool.dial(origin, soon())
        await ask(connection)
        pool.give(origin, connection)
        go.set()
        async with asyncio.timeout(5):
            while connection.is_open:  # noqa: ASYNC110 - nobody is told: it only must not be used
                await asyncio.sleep(0.001)
        assert pool.take(origin) is None
        pool.close()


async def test_end_of_a_body_that_comes_late_brings_the_connection_back() -> None:
    async with peer(CHUNKED[:-5]) as up:
        pool, origin = pool_for(up)
        connection = await pool.dial(origin, soon())
        connection.send(REQUEST, b"{}")
        await connection.head(soon())
        await connection.read(soon())
        pool.linger(origin, connection)
        assert pool.take(origin) is None
        connection.data_received(CHUNKED[-5:])
        assert pool.take(origin) is connection
        connection.close()
        pool.close()


async def test_end_of_a_body_that_does_not_come_closes_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.providers.http_pool.LINGER_S", 0.01)
    async with peer(CHUNKED[:-5]) as up:
        pool, origin = pool_for(up)
        connection = await pool.dial(origin, soon())
        connection.send(REQUEST, b"{}")
        await connection.head(soon())
        pool.linger(origin, connection)
        await asyncio.wait_for(up.left.wait(), 5)
        pool.close()


async def test_connection_that_was_idle_too_long_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.providers.http_pool.KEEPALIVE_S", 0.01)
    async with peer(PLAIN) as up:
        pool, origin = pool_for(up)
        connection = await pool.dial(origin, soon())
        await ask(connection)
        pool.give(origin, connection)
        await asyncio.wait_for(up.left.wait(), 5)
        assert pool.take(origin) is None
        pool.close()


def test_address_says_where_it_leads() -> None:
    assert Origin.of(URL("https://h./v1"), None) == Origin("h", 443, tls=True)
    assert Origin.of(URL("http://[::1]:81/v1"), None) == Origin("::1", 81, tls=False)


# Dialling.


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """Make a certificate that has signed itself."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    subject = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"]
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run([*made, "-days", "2", *subject, "-keyout", key, "-out", cert], check=True, capture_output=True)
    return cert, key


@pytest.mark.parametrize(
    ("name", "trusted", "fails"),
    [("localhost", True, None), ("localhost", False, "CertVerification"), ("elsewhere", True, "CertVerification")],
)
async def test_peer_must_prove_its_name(tmp_path: Path, name: str, trusted: bool, fails: str | None) -> None:  # noqa: FBT001
    cert, key = certificate(tmp_path, name)
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(cert, key)
    trust = ssl.create_default_context(cafile=str(cert) if trusted else None)
    async with listening(Peer([PLAIN]).serve, served) as port:
        dial = Dialer(connect_s=5, tls=trust)
        if fails is None:
            connection = await dial(Origin("localhost", port, tls=True), soon())
            assert await ask(connection) == b"hello"
            assert await ask(connection) == b"hello"
            connection.close()
        else:
            with pytest.raises(ConnectFailedError, match=fails):
                await dial(Origin("localhost", port, tls=True), soon())


def test_authorities_of_the_environment_are_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cert, _ = certificate(tmp_path, "localhost")
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    context = default_tls.__wrapped__()
    assert [ca["subject"] for ca in context.get_ca_certs()] == [((("commonName", "localhost"),),)]
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED


async def test_peer_that_never_shakes_hands_is_a_timeout() -> None:
    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with listening(silent) as port:
        with pytest.raises(TimeoutError):
            await Dialer(connect_s=0.05)(Origin("localhost", port, tls=True), soon())
        with pytest.raises(TimeoutError):
            await Dialer(connect_s=5)(Origin("localhost", port, tls=True), soon(0.05))


@pytest.mark.parametrize("name", ["nowhere.invalid", "a" * 64, "x..y"])
async def test_name_without_an_address_is_a_failed_connection(name: str) -> None:
    with pytest.raises(ConnectFailedError):
        await Dialer(connect_s=5)(Origin(name, 1, tls=False), soon())


@pytest.mark.parametrize(
    ("answer", "fails"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", None),
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "ProxyRefused"),
        (b"garbage\r\n\r\n", "ProxyRefused"),
        (b"HTTP/1.1 200 OK\r\n\r\nx", "ProxyRefused"),
        (b"", "ProxyClosed"),
    ],
)
async def test_tls_goes_through_a_proxy(tmp_path: Path, answer: bytes, fails: str | None) -> None:
    cert, key = certificate(tmp_path, "localhost")
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(cert, key)
    asked: list[bytes] = []

    async with listening(Peer([PLAIN]).serve, served) as port:

        async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(answer)
            if fails is None:
                up, down = await asyncio.open_connection("127.0.0.1", port)
                try:
                    await asyncio.gather(copy(reader, down), copy(up, writer))
                finally:
                    down.close()

        async with listening(proxy) as proxy_port:
            origin = Origin("localhost", 443, tls=True, proxy=URL(f"http://me:secret@127.0.0.1:{proxy_port}"))
            dial = Dialer(connect_s=5, tls=ssl.create_default_context(cafile=str(cert)))
            if fails is None:
                connection = await dial(origin, soon())
                assert await ask(connection) == b"hello"
                connection.close()
            else:
                with pytest.raises(ConnectFailedError, match=fails):
                    await dial(origin, soon())
    assert asked[0].startswith(b"CONNECT localhost:443 HTTP/1.1\r\nHost: localhost:443\r\n")
    assert b"\r\nProxy-Authorization: Basic bWU6c2VjcmV0\r\n" in asked[0]


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(4096):
            writer.write(data)
        writer.close()


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "http://", "https://127.0.0.1:1"])
def test_proxy_that_cannot_be_used_is_refused(proxy: str) -> None:
    with pytest.raises(ValueError, match="proxy"):
        Origin.of(URL("https://h/v1"), proxy)
