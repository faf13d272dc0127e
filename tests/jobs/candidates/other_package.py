"""Candidates from packages that are not ours: each in a virtual environment of its own, spoken to in lines of JSON."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.jobs.candidate import Command, Queue, State, Surroundings

HERE = Path(__file__).parent


class OtherPackage:
    """A candidate whose program, beside this file, takes the words ``client`` and ``worker``."""

    def __init__(self, name: str, program: str, packages: Sequence[str]) -> None:
        self.name = name
        self._program = HERE / program
        self._packages = packages

    @asynccontextmanager
    async def opened(self, surroundings: Surroundings) -> AsyncIterator[Queue]:
        """Install the packages, and start what accepts jobs."""
        with tempfile.TemporaryDirectory(prefix="candidate-") as folder:
            python = await asyncio.to_thread(_installed, Path(folder), self._packages)
            environment = {
                "PATH": os.environ["PATH"],
                "STORE": surroundings.store,
                "UPSTREAM": surroundings.upstream,
                "CONCURRENCY": str(surroundings.concurrency),
                "MODEL_PREFIX": surroundings.model_prefix,
                "MAX_TOKENS": str(surroundings.max_tokens),
                "PYTHONPATH": str(HERE),
            }
            command = [str(python), str(self._program)]
            process = await asyncio.create_subprocess_exec(
                *command, "client", env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            try:
                yield _Queue(process, Command([*command, "worker"], environment))
            finally:
                process.kill()
                await process.wait()


class _Queue:
    def __init__(self, process: asyncio.subprocess.Process, worker: Command) -> None:
        self._process = process
        self._worker = worker
        self._turn = asyncio.Lock()

    async def submit(self, job: str) -> None:
        for _ in range(40):
            if "error" not in (answer := await self._ask("submit", job)):
                return
            await asyncio.sleep(0.25)
        raise AssertionError(answer)

    async def state(self, job: str) -> State:
        answer = await self._ask("state", job)
        return State(answer["state"], answer["result"])

    async def cancel(self, job: str) -> bool:
        return bool((await self._ask("cancel", job))["cancelled"])

    def worker(self, number: int) -> Command:
        del number
        return self._worker

    async def _ask(self, what: str, job: str) -> dict[str, Any]:
        # An answer that nobody waited for would be taken for that to the next question.
        return await asyncio.shield(self._answered(what, job))

    async def _answered(self, what: str, job: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        async with self._turn:
            self._process.stdin.write(json.dumps([what, job]).encode() + b"\n")
            answer: dict[str, Any] = json.loads(await self._process.stdout.readline())
        return answer


def _installed(folder: Path, packages: Sequence[str]) -> Path:
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True, stdout=sys.stderr)
    return python
