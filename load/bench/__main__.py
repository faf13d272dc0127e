"""``python -m load.bench``: measure, print the table, keep the result; ``--check`` holds it to what is claimed."""

import argparse
import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from load.bench import claims, table
from load.bench.rig import RigError
from load.bench.run import IDLE, Plan, run
from load.bench.targets import BY_NAME, OWN

RESULT = Path(__file__).parent / "results" / "latest.json"
QUICK = ("direct", "nginx", OWN)


def main() -> int:
    """Run it; return the exit status."""
    # By an exception, so that everything that was started is stopped.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    parsed = _parser().parse_args()
    if parsed.read is not None:
        result = json.loads(parsed.read.read_text())
    else:
        try:
            result = run(_plan(parsed))
        except RigError as error:
            print(error, file=sys.stderr)
            return 2
        parsed.out.parent.mkdir(parents=True, exist_ok=True)
        parsed.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        print(f"the result: {parsed.out}", file=sys.stderr)
    print(report(result))
    if not parsed.check:
        return 0
    verdicts = claims.judge(values(result))
    print("\n" + "\n".join(verdict.text() for verdict in verdicts))
    return claims.exit_status(verdicts)


def report(result: Mapping[str, Any]) -> str:
    """Say a result as text."""
    lines = [table.as_text(table.rows(result["labels"], result["figures"]))]
    lines.append(
        "CPU time is user and system time of the whole process tree; in parentheses, the rig's own for the same."
    )
    lines += [f"not measured: {result['labels'][name]}: {why}" for name, why in result["missing"].items()]
    discarded = [window for window in result["windows"] if window["invalid"]]
    lines += [f"discarded: {one['target']} {one['workload']}: {one['invalid']}" for one in discarded]
    return "\n".join(lines)


def values(result: Mapping[str, Any]) -> claims.Figures:
    """Return the figures without what stands beside them."""
    return {
        target: {name: figure["value"] for name, figure in figures.items()}
        for target, figures in result["figures"].items()
    }


def _plan(parsed: argparse.Namespace) -> Plan:
    targets = parsed.only or (QUICK if parsed.quick else tuple(BY_NAME))
    wanted = [name for name in BY_NAME if name in {"direct", *targets}]
    if parsed.quick:
        return Plan(wanted, rounds=1, scale=0.6, idle=IDLE[:1], latency_s=3, latency_rounds=1, time_s=120)
    return Plan(wanted, rounds=parsed.rounds, scale=1, idle=IDLE, latency_s=5, latency_rounds=2, time_s=540)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m load.bench", description=__doc__, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="one round of llm-api and nginx: less than 3 minutes")
    parser.add_argument(
        "--check", action="store_true", help="exit 1 where a claim is missed, 3 where one was not measured"
    )
    parser.add_argument("--only", action="append", choices=tuple(BY_NAME), help="measure this target; may be repeated")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (3)")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the result is written")
    parser.add_argument("--read", type=Path, metavar="FILE", help="measure nothing: take the result in this file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
