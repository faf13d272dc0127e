"""Candidates from packages that are not ours: each in a virtual environment of its own, spoken to in lines of JSON."""

import asyncio
import itertools
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from tests.jobs.candidate import Command, Queue, State, Surroundings

HERE = Path(__file__).parent
SUBMIT_TRIES = 40


class OtherPackage:
    """A candidate whose program, beside this file, takes the words ``client`` and ``worker``."""

    def __init__(self, name: str, program: str, packages: Sequence[str], *, drain_s: float) -> None:
        self.name = name
        self._program = HERE / program
        self._packages = packages
        self._drain_s = drain_s
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._installing = asyncio.Lock()

    @asynccontextmanager
    async def opened(self, surroundings: Surroundings) -> AsyncIterator[Queue]:
        """Install the packages, the first time, and start what accepts jobs."""
        async with self._installing:
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="candidate-")
                await asyncio.to_thread(_install, Path(self._folder.name), self._packages)
        environment = {
            "PATH": os.environ["PATH"],
            "STORE": surroundings.store,
            "UPSTREAM": surroundings.upstream,
            "CONCURRENCY": str(surroundings.concurrency),
            "MODEL_PREFIX": surroundings.model_prefix,
            "MAX_TOKENS": str(surroundings.max_tokens),
            "DRAIN_S": str(self._drain_s),
            "REMAP_SIGTERM": "SIGQUIT",  # Celery's: with it, SIGTERM gives back what does not end in time
            "PYTHONPATH": str(HERE),
        }
        command = [str(Path(self._folder.name, "bin", "python")), str(self._program)]
        with Path(os.environ.get("JOBS_LOG", os.devnull)).open("ab") as log:  # noqa: ASYNC230 - once, a local file
            process = await asyncio.create_subprocess_exec(
                *command, "client", env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )
        queue = _Queue(process, Command([*command, "worker"], environment))
        reading = asyncio.create_task(queue.read())
        try:
            yield queue
        finally:
            reading.cancel()
            process.kill()
            await process.wait()


class _Queue:
    def __init__(self, process: asyncio.subprocess.Process, worker: Command) -> None:
        self._process = process
        self._worker = worker
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def submit(self, job: str) -> None:
        for _ in range(SUBMIT_TRIES):
            try:
                await self._ask("submit", job)
            except RuntimeError:
                await asyncio.sleep(0.25)
            else:
                return
        raise AssertionError(f"{job} was not accepted")

    async def state(self, job: str) -> State:
        answer = await self._ask("state", job)
        return State(answer["state"], answer["result"])

    async def cancel(self, job: str) -> bool:
        return bool((await self._ask("cancel", job))["cancelled"])

    def worker(self, number: int) -> Command:
        del number
        return self._worker

    async def read(self) -> None:
        """Hand out the answers as they come; at the program's end there are none any more."""
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            answer: dict[str, Any] = json.loads(line)
            with suppress(asyncio.InvalidStateError):  # whoever asked has gone
                self._asked.pop(answer["number"]).set_result(answer)
        for future in self._asked.values():
            future.set_result({"error": "the program has ended"})

    async def _ask(self, what: str, job: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        number = next(self._numbers)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._asked[number] = future
        self._process.stdin.write(json.dumps([number, what, job]).encode() + b"\n")
        answer = await future
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer


def _install(folder: Path, packages: Sequence[str]) -> None:
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True, stdout=sys.stderr)
