"""Fixtures that several kinds of tests share."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.support.live import LiveService, serving, settings_over, simulating
from tests.support.redis_server import running_redis

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")  # how long an example takes says more of the machine than of the code

CALLER_KEY = "caller-key-0123456789"


@pytest.fixture(scope="session")
def simulator() -> Iterator[str]:
    """Run a fast simulator; give its address."""
    with simulating("--ttft-ms", "1", "--gap-ms", "0") as address:
        yield address


@pytest.fixture(scope="session")
def live_service(simulator: str) -> Iterator[LiveService]:
    """Serve on a socket, over the simulator, without authentication."""
    with serving(settings_over(simulator)) as service:
        yield service


@pytest.fixture(scope="session")
def keyed_service(simulator: str) -> Iterator[LiveService]:
    """Serve the same with authentication on; the key is ``CALLER_KEY``."""
    auth = {"enabled": True, "keys": {"alice": {"key": CALLER_KEY}}}
    with serving(settings_over(simulator, auth=auth)) as service:
        yield service


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """Run a Redis-protocol server, or use the one of ``REDIS_URL``; give its address."""
    with running_redis() as url:
        yield url
