"""What `helm test` runs: it ends in time, whatever it meets, and says what it met."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from threading import Event

from tests.chart.rendering import CHART, one, pod, render
from tests.support.http_server import answering

SCRIPT = CHART / "files" / "helm_test.py"
HEALTH = {"/health": (200, '{"status": "ok"}')}
READY = {**HEALTH, "/ready": (200, '{"ready": true}')}


@contextmanager
def release(answers: dict[str, tuple[int, str]]) -> Iterator[str]:
    """Serve these answers by path; what has none hangs until the end."""
    over = Event()

    class Handler(BaseHTTPRequestHandler):
        """Answers, or does not."""

        def do_GET(self) -> None:
            """Answer."""
            if self.path not in answers:
                over.wait()
                return
            status, text = answers[self.path]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        do_POST = do_GET  # noqa: N815 - the library's name

    with answering(Handler) as address:
        try:
            yield address
        finally:
            over.set()


def helm_test(address: str, key: str | None = "a-key", timeout_s: float = 1.5) -> tuple[int, str]:
    """Run it; its status, and the last line that it wrote."""
    environment = {**os.environ, "ADDRESS": address, "MODEL": "", "TIMEOUT_S": str(timeout_s)}
    environment |= {"CALLER_KEY": key} if key else {}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.read_text()],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, (done.stdout + done.stderr).strip().splitlines()[-1]


def test_it_passes_where_everything_answers() -> None:
    with release({**READY, "/generate": (200, '{"text": "Paris"}')}) as address:
        assert helm_test(address)[0] == 0


def test_without_a_key_it_says_that_it_did_not_ask() -> None:
    with release(READY) as address:
        status, line = helm_test(address, key=None)
    assert status == 0
    assert "tests.callerKeySecret" in line


def test_it_waits_for_a_release_that_is_not_ready_and_then_tells_the_reason() -> None:
    with release({**HEALTH, "/ready": (503, '{"ready": false, "reason": "a key is refused"}')}) as address:
        status, line = helm_test(address)
    assert status == 1
    assert line.startswith("FAILED: /ready answered 503: ")
    assert "a key is refused" in line


def test_a_release_that_hangs_does_not_hang_it() -> None:
    with release(READY) as address:
        status, line = helm_test(address)
    assert status == 1
    assert line == f"FAILED: /generate gave no answer at {address}: timed out"


def test_nobody_there_is_told_too() -> None:
    status, line = helm_test("http://127.0.0.1:1")
    assert status == 1
    assert line.startswith("FAILED: /health gave no answer at http://127.0.0.1:1: ")


def test_a_refusal_is_told_with_its_words() -> None:
    with release({**READY, "/generate": (401, '{"detail": "unknown key"}')}) as address:
        assert helm_test(address) == (1, 'FAILED: /generate answered 401: {"detail": "unknown key"}')


def test_the_pod_ends_even_where_its_image_never_comes() -> None:
    objects = render({"tests": {"timeoutSeconds": 60}})
    found = one(objects, "Pod", "try-llm-api-test")
    spec = found["spec"]
    assert spec["activeDeadlineSeconds"] == 60 + 180
    assert {"name": "TIMEOUT_S", "value": "60"} in spec["containers"][0]["env"]
    assert found["metadata"]["annotations"]["helm.sh/hook-delete-policy"] == "before-hook-creation,hook-succeeded"


def test_the_pod_is_as_restricted_as_those_that_it_tests() -> None:
    objects = render()
    theirs, ours = pod(objects)["spec"], one(objects, "Pod", "try-llm-api-test")["spec"]
    assert ours["securityContext"] == theirs["securityContext"]
    assert ours["serviceAccountName"] == theirs["serviceAccountName"]
    assert ours["containers"][0]["securityContext"] == theirs["containers"][0]["securityContext"]
    assert ours["containers"][0]["resources"]["limits"]
