"""Whatever a client sends, the service answers as its OpenAPI document says, and never with a 5xx."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CALLER_KEY
from tests.support.live import LiveService

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


@pytest.mark.timeout(600)
def test_no_answer_is_undocumented_and_none_is_a_5xx(keyed_service: LiveService, tmp_path: Path) -> None:
    run = subprocess.run(
        [
            str(Path(sys.executable).parent / "schemathesis"),
            "run",
            f"{keyed_service.base_url}/openapi.json",
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
