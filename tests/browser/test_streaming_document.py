"""The browser's example of docs/streaming.md: EventSource comes back by itself, and no prompt runs twice."""

from typing import Any

import httpx
import pytest
from playwright.async_api import Browser

from tests.conftest import CALLER_KEY
from tests.support.cutting_proxy import cutting_proxy
from tests.support.document import examples
from tests.support.live import LiveService

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

CLOSED = 2
"""EventSource's ready state."""
PAGE = """async ([key, prompt]) => {
  const seen = { text: "", opened: 0, ids: [] };
  let source_ = null;
  const Real = EventSource;
  window.EventSource = class extends Real {
    constructor(url) {
      super(url);
      source_ = this;
      this.addEventListener("open", () => { seen.opened += 1; });
      this.addEventListener("message", (event) => seen.ids.push(event.lastEventId));
    }
  };
  for (const name of ["CONNECTING", "OPEN", "CLOSED"]) window.EventSource[name] = Real[name];
  return await new Promise((resolve) => {
    const append = (text) => { seen.text += text; };
    const finished = () => resolve({ ...seen, end: "finished", state: source_.readyState });
    const failed = (problem) => resolve({ ...seen, end: problem ? problem.code : "failed", state: source_.readyState });
    (async () => { EXAMPLE })();
  });
}"""


async def set_up(simulator: str, directives: str = "") -> None:
    """Empty the simulator's ledger, and set what all calls do from now on."""
    async with httpx.AsyncClient(base_url=simulator, trust_env=False) as client:
        (await client.delete("/control")).raise_for_status()
        if directives:
            (await client.post("/control", json={"directives": directives})).raise_for_status()


async def calls(simulator: str) -> int:
    async with httpx.AsyncClient(base_url=simulator, trust_env=False) as client:
        total: int = (await client.get("/ledger/summary")).json()["calls"]
        return total


async def run_example(browser: Browser, base_url: str, prompt: str) -> dict[str, Any]:
    """Run the example on a page of the service's own; return what it saw."""
    block = next(block for block in examples("streaming.md", "js") if "resumable=true" in block)
    context = await browser.new_context()
    try:
        page = await context.new_page()
        await page.goto(f"{base_url}/health")
        seen: dict[str, Any] = await page.evaluate(PAGE.replace("EXAMPLE", block), [CALLER_KEY, prompt])
        return seen
    finally:
        await context.close()


async def test_a_browser_reads_on_through_every_cut_and_the_prompt_runs_once(
    browser: Browser, keyed_service: LiveService, simulator: str
) -> None:
    text = "".join(f"line {number}: é漢😀\n" for number in range(60))
    await set_up(simulator, "gap_ms=1")  # what comes at once is one event, and must fit between two cuts
    with cutting_proxy(keyed_service.base_url, after_bytes=1_500) as proxy:
        seen = await run_example(browser, proxy.url, f"echo:{text}")
        assert proxy.cuts > 2
        assert seen["opened"] == proxy.cuts + 1
    assert seen["end"] == "finished"
    assert seen["text"] == text
    numbers = [int(event_id.rpartition(":")[2]) for event_id in seen["ids"]]
    assert numbers == sorted(set(numbers))
    assert await calls(simulator) == 1
    await set_up(simulator)


async def test_a_browser_is_told_of_a_failure_and_does_not_come_back(
    browser: Browser, keyed_service: LiveService, simulator: str
) -> None:
    await set_up(simulator, "fault=cut;after_chunks=2")
    try:
        seen = await run_example(browser, keyed_service.base_url, "Hello")
        asked = await calls(simulator)
    finally:
        await set_up(simulator)
    assert seen["end"] == "upstream_invalid_response"
    assert seen["state"] == CLOSED
    assert asked == 1
