"""``python -m observability`` writes what is generated, for operators and for the chart."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from observability.dashboards import DASHBOARDS
from observability.rules import alerting, of_all, of_release, recorded

ROOT = Path(__file__).parents[1]
PLAIN, CHART = ROOT / "observability" / "generated", ROOT / "charts" / "llm-api"
"""Each gets ``dashboards/`` and ``rules/``; the chart's rules are of one release."""
HEAD = "# Made by `make observability` from observability/: change that, not this.\n"


def as_yaml(value: Mapping[str, Any]) -> str:
    """Return rules as their file has them."""
    return HEAD + yaml.safe_dump(dict(value), sort_keys=False, width=100_000, allow_unicode=True)


def files(folder: Path) -> dict[str, str]:
    """Return what each file of a folder holds, by its path in it."""
    rules = {"recording": recorded(), "alerts": alerting()}
    return {
        **{
            f"dashboards/{dashboard.uid}.json": json.dumps(dashboard.render(), indent=1, ensure_ascii=False) + "\n"
            for dashboard in DASHBOARDS
        },
        **{
            f"rules/{name}.yaml": as_yaml(of_release(groups) if folder == CHART else of_all(groups))
            for name, groups in rules.items()
        },
    }


def main() -> None:
    """Write all files, and take away what is generated no more."""
    for folder in (PLAIN, CHART):
        made = files(folder)
        for kind in ("dashboards", "rules"):
            for old in (folder / kind).glob("*.*"):
                if f"{kind}/{old.name}" not in made:
                    old.unlink()
        for path, text in made.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
