import pytest

from tests.support.prometheus import missing


@pytest.fixture(scope="session")
def promtool() -> None:
    """Skip a test where there is no promtool."""
    remedy = missing("promtool")
    if remedy is not None:
        pytest.skip(remedy)
