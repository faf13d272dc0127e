"""The load test, for locust: `locust -f load/locustfile.py --headless --scenario load/scenarios/smoke.yaml --out DIR`.

Locust runs the processes, the page and the CSV; when requests are sent and what is measured is this package's. The
master alone judges a run; workers send it what they noted, each second.
"""

import os
import sys
import time
from argparse import ArgumentParser
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gevent
from locust import LoadTestShape, User, constant, events, task
from locust.env import Environment
from locust.runners import LocalRunner, MasterRunner, WorkerRunner
from typing_extensions import override

# Locust puts this file's folder on the path, not the one that the package stands in.
sys.path.insert(0, str(Path(__file__).parents[1]))

from load.callers import Callers
from load.measures import Gaps, Record
from load.results import Measured, write
from load.scenario import Closed, Scenario, ScenarioError, read_scenario
from load.traces import TraceError
from load.validity import exit_code
from load.worker import Worker

REPORT_S = 1.0
EXIT_USAGE = 2


class Run:
    """The state of this process: on the master what is gathered, on a worker what it does."""

    scenario: Scenario | None = None
    measured: Measured | None = None
    worker: Worker | None = None
    finished: set[str]
    written: dict[str, Any] | None = None


RUN = Run()


@events.init_command_line_parser.add_listener
def _options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--scenario", default="", help="the run, as a YAML file: see docs/load.md")
    add("--out", default="load-results", help="folder for run.json and requests.jsonl")
    add("--rate", type=float, default=None, help="requests a second, instead of the scenario's")
    add("--duration", type=float, default=None, help="seconds, instead of the scenario's")
    add("--concurrency", type=int, default=None, help="users of a closed loop, instead of the scenario's")


@events.init.add_listener
def _begin(environment: Environment, **_: Any) -> None:
    runner = environment.runner
    if isinstance(runner, MasterRunner | LocalRunner):
        runner.register_message("load_report", _gather)
        RUN.scenario = _scenario(environment.parsed_options)
        environment.host = environment.host or RUN.scenario.host
        if not environment.host:
            _refuse("--host is missing: give the service's base address there, or as host in the scenario")
    if isinstance(runner, WorkerRunner | LocalRunner):
        runner.register_message("load_plan", _plan)
    if runner is not None:
        # A request in flight is waited for: what is cut off here would look like the service's fault.
        environment.stop_timeout = RUN.scenario.timeout_s if RUN.scenario else 0


def _scenario(options: Any) -> Scenario:
    if not options.scenario:
        _refuse("--scenario is missing: name a YAML file, such as load/scenarios/smoke.yaml")
    try:
        return read_scenario(
            Path(options.scenario),
            rate_per_s=options.rate,
            duration_s=options.duration,
            concurrency=options.concurrency,
        )
    except (ScenarioError, TraceError) as error:
        _refuse(str(error))
        raise


def _refuse(message: str) -> None:
    print(message, file=sys.stderr)
    sys.exit(EXIT_USAGE)


@events.test_start.add_listener
def _start(environment: Environment, **_: Any) -> None:
    runner = environment.runner
    if not isinstance(runner, MasterRunner | LocalRunner) or RUN.scenario is None:
        return
    scenario = RUN.scenario
    ids = ["local"] if isinstance(runner, LocalRunner) else [client.id for client in runner.clients.ready]
    asked = [arrival.at_s for arrival in scenario.schedule()]
    RUN.measured = Measured(scenario, datetime.now(UTC).isoformat(timespec="seconds"), len(ids), asked)
    RUN.finished, RUN.written = set(), None
    print(f"run begins: {len(asked) or 'a closed loop of'} requests, {len(ids)} workers", flush=True)
    for index, client in enumerate(ids):
        plan = {
            "scenario": scenario.model_dump_json(),
            "host": environment.host,
            "index": index,
            "workers": len(ids),
            "id": client,
        }
        runner.send_message("load_plan", plan, client_id=client)


def _plan(environment: Environment, msg: Any, **_: Any) -> None:
    plan = msg.data
    scenario = Scenario.model_validate_json(plan["scenario"])
    callers = Callers(plan["host"], os.environ.get("LOAD_API_KEY"))

    def told(record: Record, gaps: list[float]) -> None:
        _show(environment, scenario, record, gaps)

    RUN.worker = Worker(scenario, callers, index=plan["index"], workers=plan["workers"], told=told)
    gevent.spawn(_work, environment, RUN.worker, plan["id"])


def _work(environment: Environment, worker: Worker, name: str) -> None:
    closed = isinstance(worker.scenario.arrivals, Closed)
    job = gevent.spawn(_wait_for_turns if closed else worker.follow_schedule, *((worker,) if closed else ()))
    while not job.ready():
        job.join(timeout=REPORT_S)
        _tell(environment, worker, name, finished=False)
    _tell(environment, worker, name, finished=True)


def _wait_for_turns(worker: Worker) -> None:
    while worker.now_s() < worker.scenario.duration_s or TURNS[0]:
        gevent.sleep(0.1)


TURNS = [0]
"""How many users of a closed loop are in a turn."""


def _tell(environment: Environment, worker: Worker, name: str, *, finished: bool) -> None:
    if environment.runner is not None:
        environment.runner.send_message("load_report", {**worker.report(), "id": name, "finished": finished})


def _gather(environment: Environment, msg: Any, **_: Any) -> None:  # noqa: ARG001 - locust's interface
    measured = RUN.measured
    if measured is None:
        return
    data = msg.data
    measured.records.extend(Record(*fields) for fields in data["records"])
    for route, gaps in data["gaps"]:
        measured.gaps[route].merge(Gaps.unpacked(gaps))
    for second, gaps in data["gaps_at"]:
        measured.gaps_at[second].merge(Gaps.unpacked(gaps))
    if data["finished"]:
        RUN.finished.add(data["id"])


def _show(environment: Environment, scenario: Scenario, record: Record, gaps: list[float]) -> None:
    """Put a request into locust's own tables, for its page and its CSV."""
    failed = None if record.outcome == "completed" else record.outcome
    environment.events.request.fire(
        request_type="ASK",
        name=record.route,
        response_time=record.e2e_s * 1000,
        response_length=record.output_tokens or 0,
        exception=failed,
        context={},
    )
    shown: dict[str, list[float | None]] = {"TTFT": [record.ttft_s], "TPOT": [record.tpot_s], "ITL": [*gaps]}
    shown["STALL"] = [gap for gap in gaps if gap > scenario.stall_s]
    # Beside the total, which is of requests alone.
    for method, values in shown.items():
        for value in values:
            if value is not None:
                environment.stats.get(record.route, method).log(round(value * 1000, 1), 0)  # type: ignore[arg-type]
    goodput = environment.stats.get(record.route, "GOODPUT")
    goodput.log(round(record.e2e_s * 1000), 0)
    if not record.is_good(scenario.goodput):
        goodput.log_error(None)


@events.test_stop.add_listener
def _stop(environment: Environment, **_: Any) -> None:
    if RUN.measured is not None and RUN.written is None:
        RUN.written = write(Path(environment.parsed_options.out), RUN.measured)  # type: ignore[union-attr]


@events.quitting.add_listener
def _quit(environment: Environment, **_: Any) -> None:
    if isinstance(environment.runner, WorkerRunner):
        environment.process_exit_code = 0  # the master judges
        return
    _stop(environment)
    if (document := RUN.written) is not None:
        valid, held = document["validity"]["valid"], document["slo"]["held"]
        environment.process_exit_code = exit_code(valid=valid, slo_held=held)


@events.quit.add_listener
def _say_verdict(**_: Any) -> None:
    """End the log with the verdict: locust's own tables come before."""
    if (document := RUN.written) is None:
        return
    for reason in document["validity"]["reasons"]:
        print(f"invalid: {reason}")
    for one in document["slo"]["results"]:
        print(f"{'held' if one['held'] else 'BREACHED'}: {one['name']}: {one['value']} (bound {one['bound']})")
    valid = "valid" if document["validity"]["valid"] else "INVALID, says nothing about the service"
    held = "every objective held" if document["slo"]["held"] else "objectives were not held"
    print(f"verdict: {valid}; {held}", flush=True)


class LoadUser(User):
    """In a closed loop one caller; in an open one a place for locust to count, since arrivals need no user."""

    wait_time = constant(0.2)

    @task
    def turn(self) -> None:
        """Ask until the run is over."""
        if RUN.worker is None or not isinstance(RUN.worker.scenario.arrivals, Closed):
            return
        TURNS[0] += 1
        try:
            RUN.worker.take_turns()
        finally:
            TURNS[0] -= 1


class Shape(LoadTestShape):
    """How many users there are, and that the run is over when every worker has said so."""

    @override
    def tick(self) -> tuple[int, float] | None:
        """See locust; asked once a second."""
        scenario = RUN.scenario
        if scenario is None:
            return None
        measured, begun_for_s = RUN.measured, time.perf_counter() - self.start_time
        if measured is not None and len(RUN.finished) >= measured.workers:
            return None
        # A worker that is lost never says so.
        if begun_for_s > scenario.duration_s + scenario.timeout_s + 30:
            return None
        if isinstance(scenario.arrivals, Closed):
            ended_s = 0.0
            for step in scenario.arrivals.steps:
                ended_s += step.duration_s
                if begun_for_s < ended_s:
                    return step.concurrency, step.concurrency
            return scenario.arrivals.steps[-1].concurrency, 100
        workers = getattr(self.runner, "worker_count", 1)
        return workers, workers
