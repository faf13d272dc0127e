"""``make load``: a service over a simulated provider on this machine, a scenario against it, and the report's path.

For the first look at both; to size anything, run the scenario against the pod that is to be sized.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import yaml

from load.bench.processes import running
from load.bench.targets import START_TIMEOUT_S, await_listening, clean_environment, free_port
from load.capacity.runs import LOCUST
from load.report.files import write_run

SCENARIO = Path(__file__).parent / "scenarios" / "five-minutes.yaml"
PROVIDER = ("--ttft-ms", "200", "--gap-ms", "20", "--jitter", "0.2")
"""What the simulated provider is like: a quick vendor's small model."""
CHANGING = ("--rate", "--duration", "--concurrency")
"""Options that are handed on to locust."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; return what locust ends with, which docs/load.md explains."""
    parser = argparse.ArgumentParser(prog="python -m load.local", description=__doc__)
    parser.add_argument("--scenario", type=Path, default=SCENARIO, help="a YAML file (five minutes of a trace)")
    parser.add_argument("--out", type=Path, default=Path("load-results"), help="folder for the results (load-results)")
    for option in CHANGING:
        parser.add_argument(option, help="instead of the scenario's")
    options = parser.parse_args(arguments)
    more = [word for option in CHANGING if (value := getattr(options, option[2:])) for word in (option, value)]
    options.out.mkdir(parents=True, exist_ok=True)
    with service(options.out) as address:
        print(f"{options.scenario} against {address}; logs are in {options.out}", flush=True)
        what = ("--host", address, "--scenario", str(options.scenario), "--out", str(options.out), "--only-summary")
        status = subprocess.run([*LOCUST, *what, *more], check=False).returncode  # noqa: S603 - our own program
    if not (options.out / "run.json").is_file():
        print("locust left no run.json: see what it said above", file=sys.stderr)
        return status or 1
    print(f"report: {write_run(options.out / 'run.json').resolve()}")
    return status


@contextmanager
def service(logs: Path) -> Iterator[str]:
    """Run a service and the provider that it asks; give its address."""
    program = [sys.executable, "-m", "service"]
    upstream, port = free_port(), free_port()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "service.yaml"
        config.write_text(yaml.safe_dump(_settings(upstream, folder)))
        # The package may be this folder's, and not an installed one.
        root = str(Path(__file__).parents[1])
        paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        environment = clean_environment({"LLM_API_CONFIG": str(config), "PYTHONPATH": paths})
        simulate = [*program, "simulate", "--port", str(upstream), *PROVIDER]
        serve = [*program, "serve", "--port", str(port), "--metrics-port", "0"]
        logged = logs / "simulator.log", logs / "service.log"
        with (
            running(simulate, log=logged[0], environment=environment) as provider,
            running(serve, log=logged[1], environment=environment) as served,
        ):
            await_listening(provider, upstream, logged[0])
            await_listening(served, port, logged[1])
            address = f"http://127.0.0.1:{port}"
            # Connections are accepted before there is anybody to answer.
            urlopen(f"{address}/health", timeout=START_TIMEOUT_S).close()  # noqa: S310 - our own
            yield address


def _settings(upstream: int, folder: str) -> dict[str, object]:
    provider = {"kind": "openai", "base_url": f"http://127.0.0.1:{upstream}/v1", "keys": ["sk-upstream-0123456789"]}
    return {
        "profile": "development",
        "providers": {"simulator": provider},
        "models": {"gpt-4o-mini": {"routes": [{"provider": "simulator"}]}},
        "usage": {"dir": folder},
    }


if __name__ == "__main__":
    sys.exit(main())
