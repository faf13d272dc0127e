"""What SIGTERM does while no server handles it: before it starts, and after it has stopped in order."""

import signal
import sys
from types import FrameType
from typing import NoReturn


def leave_on_sigterm() -> None:
    """End as after Ctrl-C, by an exception, so that what was started is stopped.

    uvicorn stops in order on SIGTERM and then raises it again, for whoever waits for this process; left alone, that
    would end us before the embedded model and store are stopped.
    """
    signal.signal(signal.SIGTERM, _leave)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    del number, frame
    sys.exit(0)
