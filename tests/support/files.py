"""Files that were written at a time of the test's own clock."""

import os
from pathlib import Path

from service.domain.clock import Clock


def write(path: Path, content: str | bytes, clock: Clock, *, age_s: float = 0.0) -> None:
    """Write a file so many seconds ago."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    at_ns = round((clock.wall() - age_s) * 1e9)
    os.utime(path, ns=(at_ns, at_ns))
