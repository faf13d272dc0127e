"""``llm-api``, and ``python -m service``: the same."""

import importlib
import sys

from service.serving.signals import leave_on_sigterm


def main() -> int:
    """Run the command line; return the exit status."""
    # Before anything that takes time to import: the first process of a container has no SIGTERM without a handler.
    leave_on_sigterm()
    status: int = importlib.import_module("service.cli").main()
    return status


if __name__ == "__main__":
    sys.exit(main())
