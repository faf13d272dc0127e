"""Lets a test show its figures at the end of the run, also where it passes."""

from collections.abc import Callable

import pytest

_SHOWN = pytest.StashKey[list[tuple[str, list[str]]]]()


@pytest.fixture(scope="session")
def show(pytestconfig: pytest.Config) -> Callable[[str, list[str]], None]:
    """Print lines under a title when all tests are over, without ``-s``."""
    shown = pytestconfig.stash.setdefault(_SHOWN, [])

    def add(title: str, lines: list[str]) -> None:
        shown.append((title, lines))

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for title, lines in config.stash.get(_SHOWN, []):
        terminalreporter.section(title)
        for line in lines:
            terminalreporter.write_line(line)
