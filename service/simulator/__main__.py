"""`python -m service.simulator`, the same program as `llm-api simulate`."""

import sys

from service.simulator.server import run

if __name__ == "__main__":
    run(sys.argv[1:])
