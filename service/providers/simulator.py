"""The simulated upstream, started by us where the settings name no address for one."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.providers.child import run_child


@asynccontextmanager
async def open_simulator() -> AsyncIterator[str]:
    """Run a simulator while the context is open, and give its OpenAI-compatible base URL."""
    arguments = ["service.simulator", "--exit-with-parent"]
    async with run_child("simulator", arguments, ready="simulator listening on ") as address:
        yield f"{address}/v1"
