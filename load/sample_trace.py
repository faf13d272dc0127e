"""Makes the trace that is shipped: five minutes of synthetic traffic in Azure's format, the same for the same seed.

`python -m load.sample_trace > load/traces/sample.csv` writes it again. Nothing in it was recorded anywhere. The rate
swings about 4 a second with a burst in the fourth minute, prompts and answers are log-normal, as published traces are.
"""

import math
import random
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from load.arrivals import Segment, randomly, schedule

SEED = 20_261_130
LENGTH_S = 300
BEGUN_AT = datetime(2026, 1, 1, tzinfo=UTC)


def rates() -> Iterator[Segment]:
    """Give each second's rate: a slow swing, and a burst of three times that from 200 s to 215 s."""
    for second in range(LENGTH_S):
        swing = 4 + 2 * math.sin(2 * math.pi * second / 120)
        yield Segment(swing * (3 if 200 <= second < 215 else 1), 1)  # noqa: PLR2004 - told in the docstring


def lines() -> Iterator[str]:
    """Give the file's lines."""
    sizes = random.Random(SEED + 1)  # noqa: S311 - a sample that repeats, not a secret
    yield "TIMESTAMP,ContextTokens,GeneratedTokens"
    for arrival in schedule(rates(), randomly(SEED)):
        at = BEGUN_AT + timedelta(seconds=arrival.at_s)
        context = min(round(sizes.lognormvariate(math.log(180), 0.9)), 3_000)
        generated = min(max(round(sizes.lognormvariate(math.log(60), 0.7)), 1), 800)
        yield f"{at:%Y-%m-%d %H:%M:%S.%f}0,{max(context, 1)},{generated}"


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in lines())
