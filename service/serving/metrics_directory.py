"""Where several processes leave their metrics for one of them to add up; imports nothing that measures."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""``prometheus_client`` looks at it when it is imported, so it has to be set before."""


@contextmanager
def metrics_directory() -> Iterator[Path]:
    """Prepare an empty directory and name it in the environment; one that is named there already is emptied."""
    named = os.environ.get(VARIABLE)
    if named:
        directory = Path(named)
        directory.mkdir(parents=True, exist_ok=True)
        # What an earlier run counted would be added to ours.
        for leftover in directory.glob("*.db"):
            leftover.unlink()
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="llm-api-metrics-") as temporary:
        os.environ[VARIABLE] = temporary
        try:
            yield Path(temporary)
        finally:
            del os.environ[VARIABLE]
