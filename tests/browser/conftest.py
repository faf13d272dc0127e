"""A headless Chromium, and the playground of a running service opened in it."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from playwright.async_api import Browser, async_playwright, expect

from tests.browser.playground_page import Opener, Playground, Site, Watch
from tests.support.chromium import NO_BROWSER, find_chromium, missing
from tests.support.live import LiveService

expect.set_options(timeout=15_000)

FLAGS = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture
def site(live_service: LiveService, simulator: str) -> Site:
    return Site(url=live_service.base_url, simulator_url=simulator)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's path."""
    remedy = missing()
    path = find_chromium()
    if remedy is not None or path is None:
        pytest.skip(remedy or NO_BROWSER)
    return path


# One browser for all tests, as starting one takes longer than most of them; each test has a context of its own.
@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser(chromium: str) -> AsyncIterator[Browser]:
    # Chromium's sandbox refuses to run as root.
    flags = [*FLAGS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=flags)
        try:
            yield browser
        finally:
            await browser.close()


@pytest.fixture
def open_playground(browser: Browser, site: Site) -> Opener:
    """Opens the page; on leaving, fails if it complained on its console (a CSP violation does) or went elsewhere."""

    @asynccontextmanager
    async def opened(
        *, url: str = "", scheme: Literal["light", "dark"] = "light", width: int = 1200, height: int = 750
    ) -> AsyncIterator[Playground]:
        context = await browser.new_context(
            color_scheme=scheme, viewport={"width": width, "height": height}, permissions=["clipboard-read"]
        )
        context.set_default_timeout(15_000)
        page = await context.new_page()
        watch = Watch()
        watch.follow(page)
        await page.goto(url or site.url)
        await expect(page.locator("#model option")).not_to_have_count(0)
        try:
            yield Playground(page=page, watch=watch)
        finally:
            await context.close()
        assert watch.complaints == []
        assert watch.hosts() == {urlsplit(url or site.url).netloc}

    return opened


@pytest_asyncio.fixture(loop_scope="session")
async def playground(open_playground: Opener) -> AsyncIterator[Playground]:
    async with open_playground() as opened:
        yield opened
