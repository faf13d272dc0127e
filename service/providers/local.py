"""The embedded model: a small real one, so that a newcomer needs no key. Its process is in local_server.py."""

import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from ctypes.util import find_library
from importlib.metadata import PackageNotFoundError, distribution

from service.config import EmbeddedSettings, user_cache_dir
from service.providers.child import run_child

STOP_STRINGS = ("\nQuestion", "Question:", "\n\n", "\nAnswer:")
"""Where an answer ends: the model would go on to invent the next question by itself."""


def openmp_environment() -> Mapping[str, str]:
    """Return what lets llama.cpp find OpenMP.

    It is linked with GNU's, which comes with compilers and is on no bare Debian. The extra brings LLVM's, which stands
    in under the same file name and symbols.
    """
    if sys.platform != "linux" or find_library("gomp") is not None:
        return {}
    try:
        folder = distribution("cmeel-libomp").locate_file("cmeel.prefix/lib")
    except PackageNotFoundError:
        return {}
    return {"LD_LIBRARY_PATH": os.pathsep.join(filter(None, [os.environ.get("LD_LIBRARY_PATH"), str(folder)]))}


@asynccontextmanager
async def open_local_model(settings: EmbeddedSettings) -> AsyncIterator[str]:
    """Run the embedded model while the context is open, and give its base URL.

    Raises ``service.providers.child.ChildFailedError`` if it does not come up; if it dies later it is started again.
    """
    folder = settings.cache_dir or user_cache_dir()
    arguments = ["service.providers.local_server", "--cache-dir", str(folder / "model")]
    if settings.threads is not None:
        arguments += ["--threads", str(settings.threads)]
    async with run_child(
        "embedded model", arguments, ready="embedded model listening on ", environment=openmp_environment()
    ) as address:
        yield f"{address}/v1"
