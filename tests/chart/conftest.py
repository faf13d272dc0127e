"""Without helm, these tests say so and are skipped."""

from pathlib import Path

import pytest

from tests.chart.tools import missing

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a program that is not there; ``NEEDS`` in a module names more than helm."""
    for item in items:
        if HERE in item.path.parents:
            needs = getattr(getattr(item, "module", None), "NEEDS", ("helm",))
            if reason := missing(*needs):
                item.add_marker(pytest.mark.skip(reason=reason))
