"""Whatever a client sends, the service answers as its OpenAPI document says, and never with a 5xx."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from service.config import RedisSettings
from tests.conftest import CALLER_KEY
from tests.support.live import LiveService, serving, settings_over
from tests.support.redis_server import own_redis

CASES = 5_000
"""At the least."""
EXAMPLES_PER_OPERATION = 260
"""For 14 operations, some of which have few distinct cases."""
EXCLUDED = (
    # Which models there are, and which fields go together, is beyond a JSON Schema: valid bodies may be refused.
    "positive_data_acceptance",
    # Deleting a job cancels it; how it ended can still be asked for.
    "use_after_free",
)


@pytest.fixture
def service(simulator: str) -> Iterator[LiveService]:
    """Serve with all that there is: keys, and a store, without which some routes only say that there is none."""
    auth = {"enabled": True, "keys": {"alice": {"key": CALLER_KEY}}}
    with own_redis() as store:
        redis = RedisSettings(url=SecretStr(store.url), timeout_s=1.0)
        with serving(settings_over(simulator, auth=auth, redis=redis)) as running:
            yield running


@pytest.mark.timeout(600)
def test_no_answer_is_undocumented_and_none_is_a_5xx(service: LiveService, tmp_path: Path) -> None:
    run = subprocess.run(
        [
            str(Path(sys.executable).parent / "schemathesis"),
            "run",
            f"{service.base_url}/openapi.json",
            "--header",
            f"Authorization: Bearer {CALLER_KEY}",
            "--max-examples",
            str(EXAMPLES_PER_OPERATION),
            "--phases",
            "examples,coverage,fuzzing,stateful",
            "--checks",
            "all",
            "--exclude-checks",
            ",".join(EXCLUDED),
            "--continue-on-failure",
            "--request-timeout",
            "30",
            "--workers",
            "1",
            "--warnings",
            "off",
            "--no-color",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-8_000:] + run.stderr[-2_000:]
    generated = re.search(r"(\d[\d,]*) generated", run.stdout)
    assert generated is not None, run.stdout[-2_000:]
    assert int(generated[1].replace(",", "")) >= CASES, run.stdout[-2_000:]
