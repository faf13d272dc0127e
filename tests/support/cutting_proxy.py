"""A TCP proxy that cuts connections in the middle of an event stream, as a network does."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

STREAMS = (b"GET /stream", b"POST /v1/", b"POST /chat")
"""How the requests begin whose answers are cut."""
READ_BYTES = 65_536


class CuttingProxy:
    """Passes everything on, but closes a connection that has brought so many bytes of a stream."""

    def __init__(self, target: str, *, after_bytes: int) -> None:
        address = urlsplit(target)
        self._target = address.hostname, address.port
        self._after_bytes = after_bytes
        self.url = ""
        self.cuts = 0

    async def listen(self, listening: threading.Event) -> None:
        """Serve until cancelled."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        listening.set()
        with suppress(asyncio.CancelledError):
            await server.serve_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection(*self._target)
        streaming = asyncio.Event()
        tasks = [
            asyncio.ensure_future(self._pass_requests(reader, upstream_writer, streaming)),
            asyncio.ensure_future(self._pass_answers(upstream_reader, writer, streaming)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            for end in (writer, upstream_writer):
                end.close()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _pass_requests(
        self, reader: asyncio.StreamReader, upstream: asyncio.StreamWriter, streaming: asyncio.Event
    ) -> None:
        while data := await reader.read(READ_BYTES):
            if data.startswith(STREAMS):
                streaming.set()
            upstream.write(data)

    async def _pass_answers(
        self, upstream: asyncio.StreamReader, writer: asyncio.StreamWriter, streaming: asyncio.Event
    ) -> None:
        left = self._after_bytes
        while data := await upstream.read(READ_BYTES):
            if streaming.is_set():
                data = data[:left]
                left -= len(data)
            writer.write(data)
            await writer.drain()
            if not left:
                self.cuts += 1
                return  # and close: a reset would take back what the client has not read yet


@contextmanager
def cutting_proxy(target: str, *, after_bytes: int) -> Iterator[CuttingProxy]:
    """Run a proxy in a thread until the block ends."""
    proxy = CuttingProxy(target, after_bytes=after_bytes)
    listening = threading.Event()
    loop = asyncio.new_event_loop()
    task = loop.create_task(proxy.listen(listening))

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(_until_done(task))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    listening.wait()
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()


async def _until_done(task: "asyncio.Task[None]") -> None:
    await task
