"""The load test against a service and a simulator whose delays are known, as processes on sockets."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from load.validity import EXIT_BREACH, EXIT_INVALID
from tests.support.command import free_port
from tests.support.live import process, simulating

# Looked for and not imported: locust patches the standard library of whoever imports it.
pytestmark = pytest.mark.skipif(find_spec("locust") is None, reason="the extra `load` is not installed")

TTFT_S, GAP_S, TOKENS = 0.4, 0.1, 10


@contextmanager
def _service(folder: Path) -> Iterator[tuple[int, str]]:
    """Run a service over a simulator; give its process id and its address."""
    with simulating("--ttft-ms", str(TTFT_S * 1000), "--gap-ms", str(GAP_S * 1000)) as upstream:
        provider = {"kind": "openai", "base_url": f"{upstream}/v1", "keys": ["sk-upstream-0123456789"]}
        settings = {
            "profile": "development",
            "embedded": {"store": False},
            "readiness": {"mode": "off"},
            "providers": {"openai": provider},
            "models": {"gpt-4o-mini": {"routes": [{"provider": "openai"}]}},
        }
        path = folder / "service.yaml"
        path.write_text(yaml.safe_dump(settings))
        port = free_port()
        arguments = ["-m", "service", "serve", "--port", str(port), "--metrics-port", "0"]
        with process(arguments, announces=r"(http://\S+)", environment={"LLM_API_CONFIG": str(path)}) as (child, _):
            time.sleep(2)
            yield child.pid, f"http://127.0.0.1:{port}"


def _start(folder: Path, host: str, scenario: dict[str, Any], *options: str) -> "subprocess.Popen[str]":
    path = folder / "scenario.yaml"
    path.write_text(yaml.safe_dump({"name": "test", "output_tokens": {"median": TOKENS}, **scenario}))
    command = [sys.executable, "-m", "locust", "-f", "load/locustfile.py", "--headless", "--only-summary"]
    where = ["--host", host, "--scenario", str(path), "--out", str(folder / "out")]
    run = subprocess.Popen([*command, *where, *options], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    # A loaded machine takes seconds to start it; what is done to a run is done in its course.
    assert any("run begins" in line for line in run.stdout)
    return run


def _ended(run: "subprocess.Popen[str]") -> int:
    run.communicate(timeout=40)
    return run.returncode


def _read(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "out" / "run.json").read_text())
    return document


def test_known_delays_are_measured_also_through_a_stall_of_the_service(tmp_path: Path) -> None:
    arrivals = {"kind": "constant", "rate_per_s": 20, "duration_s": 12}
    with _service(tmp_path) as (service, host):
        run = _start(tmp_path, host, {"arrivals": arrivals, "mix": {"stream": 1}})
        time.sleep(4)
        os.kill(service, signal.SIGSTOP)
        stopped_at = time.monotonic()
        time.sleep(2)
        os.kill(service, signal.SIGCONT)
        stalled_s = time.monotonic() - stopped_at
        assert _ended(run) == 0
    document = _read(tmp_path)
    assert document["validity"]["valid"], document["validity"]
    found = document["routes"]["stream"]
    assert found["completed"] == 240
    assert found["ttft_s"]["p50"] == pytest.approx(TTFT_S, rel=0.05)
    assert found["itl_s"]["p50"] == pytest.approx(GAP_S, rel=0.05)
    # Of 240, the 40 that were due in the stall waited for the rest of it: evenly up to 2 s. So the 99th percentile is
    # the third longest of them. A generator that waits for answers would have sent next to none in those 2 s.
    assert found["ttft_s"]["p99"] == pytest.approx(stalled_s + TTFT_S - 2 / 20, rel=0.05)
    assert found["stalls"] > 0


def test_a_breach_has_a_status_of_its_own(tmp_path: Path) -> None:
    arrivals = {"kind": "poisson", "rate_per_s": 10, "duration_s": 4}
    slo = [{"metric": "ttft_s", "percentile": 50, "bound": TTFT_S / 2}]
    with _service(tmp_path) as (_, host):
        run = _start(tmp_path, host, {"arrivals": arrivals, "mix": {"v1_stream": 1}, "slo": slo})
        assert _ended(run) == EXIT_BREACH
    assert _read(tmp_path)["validity"]["valid"]


def test_a_starved_generator_makes_the_run_invalid(tmp_path: Path) -> None:
    arrivals = {"kind": "constant", "rate_per_s": 20, "duration_s": 6}
    with _service(tmp_path) as (_, host):
        run = _start(tmp_path, host, {"arrivals": arrivals, "mix": {"stream": 1}})
        time.sleep(1)
        over = threading.Timer(6, lambda: None)
        over.start()
        while over.is_alive() and run.poll() is None:
            run.send_signal(signal.SIGSTOP)
            time.sleep(0.3)
            run.send_signal(signal.SIGCONT)
            time.sleep(0.05)
        assert _ended(run) == EXIT_INVALID
    assert any("late at the median" in reason for reason in _read(tmp_path)["validity"]["reasons"])


def test_two_workers_share_one_schedule(tmp_path: Path) -> None:
    arrivals = {"kind": "constant", "rate_per_s": 10, "duration_s": 4}
    with _service(tmp_path) as (_, host):
        run = _start(tmp_path, host, {"arrivals": arrivals, "mix": {"v1_stream": 1}}, "--processes", "2")
        assert _ended(run) == 0
    document = _read(tmp_path)
    assert document["generator"]["workers"] == 2
    assert document["generator"]["asked"] == document["generator"]["sent"] == 40
    assert document["routes"]["v1_stream"]["completed"] == 40
    assert document["routes"]["v1_stream"]["ttft_s"]["p50"] == pytest.approx(TTFT_S, rel=0.1)


def test_make_load_runs_all_of_it_on_this_machine(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "load.local", "--duration", "4", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    document = _read(tmp_path)
    # Whether a busy machine holds the objectives is not what this looks at.
    assert done.returncode in (0, EXIT_BREACH, EXIT_INVALID), done.stderr
    assert sum(route["completed"] for route in document["routes"].values()) == document["generator"]["asked"] > 0
    page = Path(done.stdout.rpartition("report: ")[2].strip())
    assert "five-minutes" in page.read_text()
