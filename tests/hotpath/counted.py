"""The service as ``serve`` runs it, with every call of a function counted, Python's and C's, in the loop's thread.

For each line on the standard input it says how many there were, once no more come.
"""

import sys
import threading
import time
from types import FrameType

from service.__main__ import main

STEADY_S = 0.004
STEADY_TIMES = 3

calls = 0


def count(_: FrameType, event: str, __: object) -> None:
    global calls  # noqa: PLW0603 - a profile function has no other place that costs as little
    if event in {"call", "c_call"}:
        calls += 1


def tell() -> None:
    """Answer each line with the count, after the loop has come to rest."""
    for _ in sys.stdin:
        steady, seen = 0, calls
        while steady < STEADY_TIMES:
            time.sleep(STEADY_S)
            steady = steady + 1 if calls == seen else 0
            seen = calls
        print(f"calls {seen}", flush=True)


if __name__ == "__main__":
    threading.Thread(target=tell, daemon=True).start()
    sys.setprofile(count)
    sys.exit(main())
