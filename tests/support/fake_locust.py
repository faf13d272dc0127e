"""Stands in for the load tests: writes the run of a pod whose objectives hold up to 40 requests a second."""

import argparse
import os
import sys
import time
from pathlib import Path

from tests.support import load_runs

CAPACITY = float(os.environ.get("FAKE_CAPACITY", "40"))
GENERATOR = float(os.environ.get("FAKE_GENERATOR", "1e9"))
"""The rate above which runs are invalid."""
SHARE_DUE = float(os.environ.get("FAKE_SHARE_DUE", "1"))
"""Of what is wanted, what is due by chance."""


def main() -> int:
    """Write a run."""
    parser = argparse.ArgumentParser()
    for name in ("host", "scenario", "rate", "duration", "out"):
        parser.add_argument(f"--{name}", required=True)
    options = parser.parse_args()
    rate, seconds = float(options.rate), 10
    time.sleep(float(options.duration))
    made = load_runs.requests(seconds, max(1, round(rate)))[: max(1, int(rate * seconds * SHARE_DUE))]
    load_runs.write(Path(options.out), made, seconds=seconds, valid=rate <= GENERATOR, held=rate <= CAPACITY)
    return 0 if rate <= min(CAPACITY, GENERATOR) else 3


if __name__ == "__main__":
    sys.exit(main())
