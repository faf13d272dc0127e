"""The examples of docs/streaming.md do what they are there for: on a connection that breaks again and again."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.support.cutting_proxy import cutting_proxy
from tests.support.document import ADDRESS, examples
from tests.support.live import LiveService
from tests.support.readers import parse_events, read_events

TIMEOUT_S = 60


@pytest.fixture(autouse=True)
def no_calls_yet(simulator: str) -> None:
    httpx.delete(f"{simulator}/ledger").raise_for_status()


def calls(simulator: str) -> int:
    total: int = httpx.get(f"{simulator}/ledger/summary").json()["calls"]
    return total


def shell(block: str, base_url: str, folder: Path) -> str:
    """Run a block as a shell would; return its standard output."""
    run = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.replace(ADDRESS, base_url)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
    )
    return run.stdout


def test_curl_streams(live_service: LiveService, tmp_path: Path) -> None:
    (block, *_) = examples("streaming.md", "sh")
    read = read_events(parse_events([shell(block, live_service.base_url, tmp_path).encode()]))
    assert read.terminals == ["done"]
    assert read.text


def test_a_shell_goes_on_behind_the_last_whole_event(live_service: LiveService, simulator: str, tmp_path: Path) -> None:
    block = examples("streaming.md", "sh")[1]
    httpx.post(f"{simulator}/control", json={"directives": "tokens=30;gap_ms=100"}).raise_for_status()
    try:
        shell(block, live_service.base_url, tmp_path)
    finally:
        httpx.delete(f"{simulator}/control").raise_for_status()
    first, second = ((tmp_path / name).read_bytes() for name in ("part-1.txt", "part-2.txt"))
    whole = first[: first.rindex(b"\n\n") + 2]
    assert b"[DONE]" not in whole
    read = read_events(parse_events([whole, second]))
    assert read.terminals == ["done"]
    assert read.usage is not None
    assert read.usage["completion_tokens"] == 30
    ids = [line for line in (whole + second).decode().split("\n") if line.startswith("id: ")]
    assert [int(line.rpartition(":")[2]) for line in ids] == list(range(1, len(ids) + 1))


def test_the_openai_sdk_reads_on_through_every_cut(live_service: LiveService, simulator: str, tmp_path: Path) -> None:
    (block,) = examples("streaming.md", "python")
    question = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "What is the capital of France?"}]}
    answer = httpx.post(f"{live_service.base_url}/v1/chat/completions", json=question)
    expected = answer.json()["choices"][0]["message"]["content"]
    httpx.delete(f"{simulator}/ledger").raise_for_status()
    with cutting_proxy(live_service.base_url, after_bytes=2_000) as proxy:
        script = tmp_path / "example.py"
        script.write_text(block.replace(ADDRESS, proxy.url), "utf-8")
        run = subprocess.run(
            [sys.executable, str(script)], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        assert run.stderr == ""
        assert run.stdout == expected + "\n"
        assert proxy.cuts > 2
    assert calls(simulator) == 1
