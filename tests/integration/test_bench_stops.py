"""A benchmark that is stopped takes all that it started with it."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from load.bench import rig
from load.bench.processes import descendants
from tests.support.redis_server import eventually

RIG_AND_SERVICE = 3
START_TIMEOUT_S = 60


def is_running(pid: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def test_sigterm_ends_the_rig_and_the_targets(tmp_path: Path) -> None:
    try:
        rig.build()
    except rig.RigError as error:
        pytest.skip(str(error))
    command = [sys.executable, "-m", "load.bench", "--quick", "--only", "direct", "--out", str(tmp_path / "out.json")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    started: set[int] = set()
    try:
        assert eventually(lambda: len(descendants(process.pid)) >= RIG_AND_SERVICE, START_TIMEOUT_S)
        started = descendants(process.pid)
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
        assert eventually(lambda: not any(map(is_running, started)), 5)
    finally:
        process.kill()
        process.wait()
        for pid in started:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
