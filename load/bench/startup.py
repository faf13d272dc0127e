"""How soon the service is there: its import, its first answer after a cold start, its memory at rest."""

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from statistics import median
from urllib.request import Request, urlopen

from load.bench.processes import pss_bytes
from load.bench.rig import chat_body
from load.bench.targets import Live, Place, llm_api

IMPORTS = 3
IMPORT = "import time; at = time.perf_counter(); import service.app; print(time.perf_counter() - at)"


def import_s() -> float:
    """Return the seconds that the import of the application takes, in a process of its own; median of some."""
    return median(
        float(subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, check=True, timeout=60).stdout)  # noqa: S603
        for _ in range(IMPORTS)
    )


def answer(live: Live) -> None:
    """Ask one question; raise ``OSError`` where there is no answer."""
    body = json.dumps(chat_body(stream=False)).encode()
    headers = {"content-type": "application/json", **live.headers}
    with urlopen(Request(f"http://{live.address}/v1/chat/completions", body, headers), timeout=30) as got:
        got.read()


def start(place: Place) -> Mapping[str, float]:
    """Start the service, wait for its first answer, and measure; wall clock, on a machine that does nothing else."""
    began = time.monotonic()
    with llm_api(place) as live:
        answer(live)
        first_answer_s = time.monotonic() - began
        time.sleep(1)
        return {
            "import_s": import_s(),
            "first_answer_s": first_answer_s,
            "start_mib": pss_bytes(live.pid) / 2**20,
        }
