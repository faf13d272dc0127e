"""The playground in a real browser, against the real service with the simulator behind it."""

import asyncio
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from playwright.async_api import Route, WebSocketRoute, expect

from tests.browser.playground_page import Opener, Playground, Site, Transport
from tests.conftest import CALLER_KEY
from tests.support.live import LiveService

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

TRANSPORTS: Final[tuple[Transport, ...]] = ("fetch", "eventsource", "websocket")
over_each_transport = pytest.mark.parametrize("transport", TRANSPORTS)

AWKWARD = (
    "  two spaces first\n\n\n\ttab\u2028line separator\u2029␍lone CR, CR LF␍\n"
    "[DONE]\ndata: not a field\n: no comment\n<img src=x onerror=alert(1)> &amp; 👩‍👩‍👧 é e\u0301 \ufeff end  "
)
"""Has what breaks a careless reader of SSE. A text field cannot hold CR, so ␍ stands for it on the way there."""


async def put_carriage_returns(playground: Playground) -> None:
    """Replace ␍ by CR in each call that leaves the page."""

    async def rewrite_http(route: Route) -> None:
        url = route.request.url.replace("%E2%90%8D", "%0D")
        body = route.request.post_data
        if body is None:
            await route.continue_(url=url)
        else:
            await route.continue_(url=url, post_data=body.replace("␍", "\\r"))

    def rewrite_socket(route: WebSocketRoute) -> None:
        server = route.connect_to_server()

        def forward(message: str | bytes) -> None:
            assert isinstance(message, str)
            server.send(message.replace("␍", "\\r"))

        route.on_message(forward)

    await playground.page.route(re.compile(r"/(chat|stream)\b"), rewrite_http)
    await playground.page.route_web_socket(re.compile(r"/ws\b"), rewrite_socket)


@over_each_transport
async def test_answer_arrives_with_its_figures(playground: Playground, transport: Transport) -> None:
    await playground.choose(transport=transport, model="sim;gap_ms=5")

    assert await playground.ask("echo:Paris is the capital of France.") == "Paris is the capital of France."

    assert await playground.state() == "complete"
    assert re.fullmatch(r"\d+ ms", await playground.fact("ttft"))
    assert re.fullmatch(r"\d+\.\d", await playground.fact("speed"))
    assert re.fullmatch(r"\d+ → \d+", await playground.fact("tokens"))
    assert await playground.fact("finish") == "stop"
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", await playground.fact("request-id"))
    await expect(playground.page.locator("#status")).to_contain_text("Answered")


@over_each_transport
async def test_any_text_arrives_exactly(playground: Playground, transport: Transport) -> None:
    await put_carriage_returns(playground)
    await playground.choose(transport=transport)

    assert await playground.ask(f"echo:{AWKWARD}") == AWKWARD.replace("␍", "\r")

    assert await playground.turn.locator("img").count() == 0


async def test_eventsource_goes_in_by_a_ticket_once(playground: Playground) -> None:
    await playground.choose(transport="eventsource")
    await playground.ask("echo:one two three")

    calls = [request for request in playground.watch.requests if request.resource_type in {"fetch", "eventsource"}]
    asked = [(request.method, urlsplit(request.url).path) for request in calls]
    assert asked == [("GET", "/v1/models"), ("POST", "/tickets"), ("GET", "/stream")]
    assert "ticket" in parse_qs(urlsplit(calls[-1].url).query)


async def test_one_socket_carries_several_turns_and_their_history(playground: Playground) -> None:
    sent: list[str] = []
    playground.page.on("websocket", lambda socket: socket.on("framesent", lambda frame: sent.append(str(frame))))
    await playground.choose(transport="websocket")
    await playground.ask("echo:first")
    await playground.ask("echo:second")

    assert len(playground.watch.sockets) == 1
    assert [message["content"] for message in json.loads(sent[-1])["messages"]] == [
        "echo:first",
        "first",
        "echo:second",
    ]


async def test_closed_socket_is_shown_and_opened_anew(playground: Playground) -> None:
    await playground.choose(transport="websocket")
    await playground.ask("echo:first")
    await playground.page.fill("#key", "another key closes the socket of the former")
    await playground.page.press("#key", "Tab")
    await expect(playground.page.locator("#socket-state")).to_contain_text("Closed with code 1000")
    await playground.page.fill("#key", "")

    assert await playground.ask("echo:second") == "second"
    assert len(playground.watch.sockets) == 2


@over_each_transport
async def test_stop_keeps_the_text_and_ends_the_upstream_call(
    playground: Playground, site: Site, transport: Transport
) -> None:
    model = f"sim;gap_ms=20;tokens=5000;key=stop-{transport}"
    await playground.choose(transport=transport, model=model)
    await playground.page.fill("#max-tokens", "4096")
    await playground.send("Count for ever.")
    await expect(playground.turn.locator("[data-part=answer]")).not_to_be_empty()

    await playground.page.keyboard.press("Escape")

    await expect(playground.turn).to_have_attribute("data-state", "stopped")
    await expect(playground.turn.locator("[data-part=note]")).to_contain_text("incomplete")
    assert await playground.answer() != ""
    call = await ended_call(site, model)
    assert call["client_left"] is True
    assert call["output_tokens_delivered"] < call["output_tokens_total"] == 4096


async def ended_call(site: Site, model: str) -> dict[str, Any]:
    """The simulator's record of the one call to this model, once it has ended; asked for until then, 10 s at most."""
    async with asyncio.timeout(10), httpx.AsyncClient(base_url=site.simulator_url) as simulator:
        while True:
            calls = [call for call in (await simulator.get("/ledger")).json() if call["model"] == model]
            assert len(calls) <= 1
            if calls and calls[0]["closed_at"] is not None:
                return dict(calls[0])
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("transport", ["fetch", "websocket"])
async def test_refused_call_is_shown_as_the_service_said_it(playground: Playground, transport: Transport) -> None:
    await playground.choose(transport=transport, model="sim-500")
    await playground.ask("Why?")

    assert await playground.state() == "error"
    await expect(playground.problem).to_contain_text("502 upstream_unavailable")
    await expect(playground.problem).to_contain_text("said by the service")
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", await playground.fact("request-id"))
    await expect(playground.page.locator("#status")).to_contain_text("Error")


async def test_refusal_that_eventsource_hides_is_said_and_fetch_shows_the_reason(playground: Playground) -> None:
    await playground.choose(transport="eventsource", model="sim-500")
    await playground.ask("Why?")

    await expect(playground.problem).to_contain_text("Refused before the stream began")
    await expect(playground.problem).to_contain_text("seen by this page")
    assert playground.watch.paths().count("/stream") == 1
    assert "/chat" not in playground.watch.paths()

    await playground.problem.get_by_role("button").click()
    await expect(playground.page.locator(".turn")).to_have_count(2)
    await playground.ended()
    await expect(playground.problem).to_contain_text("502 upstream_unavailable")


async def test_eventsource_that_cannot_connect_is_told_from_a_refusal(playground: Playground) -> None:
    await playground.page.route(re.compile(r"/stream\b"), lambda route: route.abort("connectionrefused"))
    await playground.choose(transport="eventsource")
    await playground.ask("Why?")

    await expect(playground.problem).to_contain_text("The connection failed before the stream began")
    assert playground.watch.paths().count("/stream") == 1


@over_each_transport
async def test_fault_in_mid_answer_keeps_the_text_and_says_it_is_incomplete(
    playground: Playground, transport: Transport
) -> None:
    await playground.choose(transport=transport, model="sim;tokens=60;fault=reset;after_chunks=5")
    await playground.ask("Why?")

    assert await playground.state() == "error"
    assert await playground.answer() != ""
    await expect(playground.problem).to_contain_text("502 upstream_invalid_response")
    await expect(playground.problem).to_contain_text("The text above is incomplete.")


async def test_failed_turn_is_not_sent_on(playground: Playground) -> None:
    await playground.choose(model="sim-500")
    await playground.ask("lost")
    await playground.choose(model="sim")
    await playground.ask("echo:kept")

    assert [message["content"] for message in playground.watch.chats()[-1]["messages"]] == ["echo:kept"]


@pytest.mark.parametrize("transport", ["fetch", "eventsource"])
async def test_stream_that_ends_without_its_end_is_an_error_and_never_asked_again(
    playground: Playground, transport: Transport
) -> None:
    async def cut(route: Route) -> None:
        await route.fulfill(
            content_type="text/event-stream", body="data: half an ans\n\ndata: lost, as no blank line follows"
        )

    await playground.page.add_init_script(
        "window.sources = []; window.EventSource = class extends EventSource {"
        " constructor(...args) { super(...args); window.sources.push(this); } };"
    )
    await playground.page.reload()
    await playground.page.route(re.compile(r"/(chat|stream)\b"), cut)
    await playground.choose(transport=transport)

    assert await playground.ask("Why?") == "half an ans"

    await expect(playground.problem).to_contain_text("truncated")
    states = await playground.page.evaluate("window.sources.map((source) => source.readyState)")
    assert states == ([2] if transport == "eventsource" else [])


async def test_validation_error_names_its_field(playground: Playground) -> None:
    await playground.choose(model="no-such-model-anywhere")
    await playground.ask("Why?")

    await expect(playground.problem).to_contain_text("422")
    await expect(playground.problem).to_contain_text("model")


async def test_everything_works_from_the_keyboard(playground: Playground) -> None:
    page = playground.page
    await expect(page.locator("#prompt")).to_be_focused()
    await page.keyboard.type("echo:one")
    await page.keyboard.press("Shift+Enter")
    await page.keyboard.type("two")
    await page.keyboard.press("Enter")
    await playground.ended()
    assert await playground.answer() == "one\ntwo"
    await expect(page.locator("#prompt")).to_be_focused()
    assert await page.input_value("#prompt") == ""

    await page.keyboard.press("Shift+Tab")
    await expect(playground.turn.get_by_role("button", name="Code")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.locator("#code")).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(page.locator("#code")).to_be_hidden()
    await expect(playground.turn.get_by_role("button", name="Code")).to_be_focused()


async def test_tab_key_reaches_every_control_and_shows_where_it_is(playground: Playground) -> None:
    page = playground.page
    await playground.ask("echo:one two")
    await page.locator(".skip").focus()
    ringed = {}
    for _ in range(30):
        await page.keyboard.press("Tab")
        name, ring = await page.evaluate(
            """() => {
              const at = document.activeElement;
              const ring = (node) => getComputedStyle(node).outlineStyle !== "none";
              return [at.id || at.value || at.textContent, at === document.body || ring(at) || ring(at.parentElement)];
            }"""
        )
        ringed[name] = ring
    assert set(ringed) >= {"new-conversation", "theme", "model", "fetch", "max-tokens", "temperature", "system", "key"}
    assert set(ringed) >= {"Docs", "OpenAPI", "Health", "Ready", "Code", "prompt", "send"}
    assert [name for name, ring in ringed.items() if not ring] == []


async def test_every_control_has_a_name_for_assistive_technology(playground: Playground) -> None:
    page = playground.page
    await playground.ask("echo:one two")
    await playground.turn.get_by_role("button", name="Code").click()
    session = await page.context.new_cdp_session(page)
    await session.send("Accessibility.enable")
    roles = {"button", "textbox", "combobox", "radio", "spinbutton", "link", "dialog", "radiogroup", "group"}
    nameless = []
    for opened in (True, False):
        tree = await session.send("Accessibility.getFullAXTree")
        found = [
            node for node in tree["nodes"] if node.get("role", {}).get("value") in roles and not node.get("ignored")
        ]
        assert len(found) > (4 if opened else 15)
        nameless += [node["role"]["value"] for node in found if not node.get("name", {}).get("value")]
        await page.keyboard.press("Escape")
    assert nameless == []
    ids = await page.evaluate("[...document.querySelectorAll('[id]')].map((node) => node.id)")
    assert len(ids) == len(set(ids))


async def test_tokens_are_not_announced_one_by_one(playground: Playground) -> None:
    await playground.ask("echo:one two")
    live = await playground.page.evaluate(
        "[...document.querySelectorAll('[aria-live], [role=status], [role=log], [role=alert]')].map((node) => node.id)"
    )
    assert live == ["status"]


CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255, 255];
  };
  const low = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || !node.checkVisibility() || node.closest("script, noscript, option")) continue;
    const pair = [luminance(rgba(getComputedStyle(node).color)), luminance(behind(node))].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (ratio < 4.5) low.push(`${walk.currentNode.data.trim()}: ${ratio.toFixed(2)}`);
  }
  return low;
}"""
"""Texts whose contrast is below 4.5 to 1 (WCAG 2.2, criterion 1.4.3)."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_contrast_suffices(open_playground: Opener, scheme: str) -> None:
    async with open_playground(scheme=scheme) as playground:
        assert await playground.page.evaluate(CONTRASTS) == []
        await playground.choose(model="sim-500")
        await playground.ask("Why?")
        assert await playground.page.evaluate(CONTRASTS) == []


async def test_theme_follows_the_system_until_chosen_and_is_then_remembered(open_playground: Opener) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    async with open_playground(scheme="light") as light, open_playground(scheme="dark") as dark:
        by_system = [await page.evaluate(background) for page in (light.page, dark.page)]
        await light.page.get_by_role("button", name="Switch to the dark theme").click()
        await light.page.reload()

        assert await light.page.evaluate(background) == by_system[1] != by_system[0]


async def test_nothing_is_cut_off_at_400_pixels(open_playground: Opener) -> None:
    async with open_playground(width=400, height=800) as playground:
        await playground.ask("echo:" + "unbroken" * 40)
        await playground.page.get_by_role("button", name="Settings").click()
        await expect(playground.page.locator("#key")).to_be_visible()

        assert await playground.page.evaluate("document.documentElement.scrollWidth") == 400
        assert await playground.page.evaluate("document.getElementById('scroll').scrollWidth") <= 400


async def test_key_goes_in_a_header_and_nowhere_else(playground: Playground) -> None:
    secret = "sk-only-in-a-header"
    await playground.page.fill("#key", secret)
    await playground.page.press("#key", "Tab")
    for transport in TRANSPORTS:
        await playground.choose(transport=transport)
        await playground.ask("echo:one two")
    await playground.turn.get_by_role("button", name="Code").click()
    for language in ("curl", "python", "javascript"):
        await playground.page.check(f"input[name=language][value={language}]")
        snippet = await playground.page.locator("#snippet").text_content() or ""
        assert "LLM_API_KEY" in snippet
        assert secret not in snippet
    await playground.page.keyboard.press("Escape")

    carrying = [request for request in playground.watch.requests if "authorization" in request.headers]
    assert {urlsplit(request.url).path for request in carrying} == {"/v1/models", "/chat", "/tickets"}
    urls = [request.url for request in playground.watch.requests] + [socket.url for socket in playground.watch.sockets]
    assert [url for url in urls if secret in url] == []
    assert secret not in await playground.page.evaluate("JSON.stringify(localStorage)")
    assert secret in await playground.page.evaluate("JSON.stringify(sessionStorage)")


@pytest.mark.parametrize("language", ["curl", "python"])
@pytest.mark.parametrize("transport", ["fetch", "eventsource"])
async def test_copied_code_runs_and_gets_the_same_answer(
    playground: Playground, transport: Transport, language: str
) -> None:
    await playground.choose(transport=transport)
    text = """it's "quoted" \\ $HOME `id` & <é> 100%"""
    assert await playground.ask(f"echo:{text}") == text
    await playground.turn.get_by_role("button", name="Code").click()
    await playground.page.check(f"input[name=language][value={language}]")
    await playground.page.get_by_role("button", name="Copy").click()
    await expect(playground.page.locator("#code-hint")).to_have_text("Copied.")
    copied = await playground.page.evaluate("navigator.clipboard.readText()")

    assert await run_snippet(language, copied) == text


async def run_snippet(language: str, code: str) -> str:
    """Run copied code as a user would; returns the answer that it prints."""
    if language == "curl" and shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    command = ["sh", "-c", code] if language == "curl" else [sys.executable, "-c", code]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(30):
        out, _ = await process.communicate()
    assert process.returncode == 0
    if language == "python":
        return out.decode()
    # The prompt of the test has no line ends, so each event is one `data:` line.
    return "".join(line.removeprefix("data: ") for line in out.decode().partition("event:")[0].splitlines())


async def test_new_conversation_forgets_the_former(playground: Playground) -> None:
    await playground.ask("echo:secret of the first")
    await playground.page.get_by_role("button", name="New conversation").click()
    await expect(playground.page.locator(".turn")).to_have_count(0)
    await playground.ask("echo:fresh")

    assert [message["content"] for message in playground.watch.chats()[-1]["messages"]] == ["echo:fresh"]


async def test_system_prompt_goes_first(playground: Playground) -> None:
    await playground.page.fill("#system", "Be brief.")
    await playground.ask("echo:yes")

    assert playground.watch.chats()[-1]["messages"][0] == {"role": "system", "content": "Be brief."}


async def test_missing_list_of_models_is_said(playground: Playground) -> None:
    refusal = {"type": "about:blank", "title": "Unauthenticated", "status": 401, "detail": "No key was given."}
    await playground.page.route("**/v1/models", lambda route: route.fulfill(status=401, json=refusal))
    await playground.page.reload()

    await expect(playground.page.locator("#model-problem")).to_contain_text("401 No key was given.")


async def enter_key(playground: Playground, key: str) -> None:
    """Enter a key and wait for the list of models that it brings, or the refusal."""
    async with playground.page.expect_response("**/v1/models"):
        await playground.page.fill("#key", key)
        await playground.page.press("#key", "Tab")


async def test_key_that_is_entered_brings_a_model_to_ask(open_playground: Opener, keyed_service: LiveService) -> None:
    async with open_playground(url=keyed_service.base_url) as playground:
        await expect(playground.page.locator("#model-problem")).to_contain_text("401")
        await expect(playground.page.locator("#model-name")).to_be_visible()
        await enter_key(playground, CALLER_KEY)

        await expect(playground.page.locator("#model-problem")).to_be_hidden()
        await expect(playground.page.locator("#model-name")).to_be_hidden()
        assert await playground.ask("echo:let in") == "let in"


async def test_name_that_was_written_before_the_key_is_kept(
    open_playground: Opener, keyed_service: LiveService
) -> None:
    async with open_playground(url=keyed_service.base_url) as playground:
        await playground.page.fill("#model-name", "a-name-of-mine")
        await enter_key(playground, CALLER_KEY)

        await expect(playground.page.locator("#model option")).not_to_have_count(1)
        await expect(playground.page.locator("#model-name")).to_be_visible()
        await expect(playground.page.locator("#model-name")).to_have_value("a-name-of-mine")


async def test_chosen_model_outlives_a_mistyped_key(open_playground: Opener, keyed_service: LiveService) -> None:
    async with open_playground(url=keyed_service.base_url) as playground:
        await enter_key(playground, CALLER_KEY)
        names = playground.page.locator("#model option")
        await expect(names).not_to_have_count(1)
        chosen = await names.nth(1).text_content() or ""
        await playground.page.select_option("#model", label=chosen)
        await enter_key(playground, "mistyped-0123456789")
        await expect(names).to_have_count(1)
        await enter_key(playground, CALLER_KEY)

        await expect(playground.page.locator("#model")).to_have_value(chosen)


PICTURE_PROMPTS = ("What is the capital of France?", "Name the planets of the solar system.")
"""What the embedded model answers well."""
IMAGES = Path(__file__).parents[2] / "docs" / "images"


@pytest.mark.skipif("LLM_API_PICTURE_URL" not in os.environ, reason="LLM_API_PICTURE_URL names no service to picture")
@pytest.mark.parametrize(("scheme", "name"), [("light", "playground.png"), ("dark", "playground-dark.png")])
async def test_picture_for_the_readme(open_playground: Opener, scheme: str, name: str) -> None:
    """Taken on demand, of a service with a real model, such as the one that `make serve` starts."""
    async with open_playground(url=os.environ["LLM_API_PICTURE_URL"], scheme=scheme) as playground:
        await playground.page.fill("#temperature", "0")
        for prompt in PICTURE_PROMPTS:
            await playground.ask(prompt)
            assert await playground.state() == "complete"
        IMAGES.mkdir(parents=True, exist_ok=True)
        await playground.page.screenshot(path=IMAGES / name)
        assert (IMAGES / name).stat().st_size < 200_000
