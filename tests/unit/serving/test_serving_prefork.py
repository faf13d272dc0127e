"""What a worker does about signals between the fork and its own set-up: gunicorn's parent is the real one elsewhere."""

import signal
import subprocess
import sys

import pytest

WORKER = """
import os, queue, signal, sys, time
from types import SimpleNamespace
from service.serving.prefork import _Application

arbiter = SimpleNamespace(SIG_QUEUE=queue.SimpleQueue())
signal.signal(signal.SIGTERM, lambda number, _: arbiter.SIG_QUEUE.put_nowait(number))
application = object.__new__(_Application)
application._parent = os.getpid()
if not (child := os.fork()):
    if sys.argv[1] == "before":
        os.kill(os.getpid(), signal.SIGTERM)
    application._post_fork(arbiter, None)
    if sys.argv[1] == "after":
        os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(100):
        time.sleep(0.1)
    os._exit(3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="gunicorn needs fork")
@pytest.mark.parametrize(("when", "status"), [("before", 0), ("after", -signal.SIGTERM)])
def test_worker_that_is_told_to_end_while_it_is_born_does(when: str, status: int) -> None:
    result = subprocess.run([sys.executable, "-c", WORKER, when], capture_output=True, text=True, check=True)
    assert result.stdout.split() == [str(int(status))]
