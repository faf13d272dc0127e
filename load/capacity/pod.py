"""What one pod tells of itself while it is under load: its metrics, read each second."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.error import URLError
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

STREAMS, IN_FLIGHT = "llm_api_streams_active", "llm_api_http_requests_in_flight"
CPU, MEMORY, STARTED = "process_cpu_seconds_total", "process_resident_memory_bytes", "process_start_time_seconds"
TIMEOUT_S = 5.0
EVERY_S = 1.0
SETTLING = 0.25
"""Share of a run, at its beginning, in which streams only gather."""
IDLE_WITHIN_S = 120.0
SAMPLES_MIN = 2


class Unreadable(Exception):  # noqa: N818 - it reads as what happened
    """The pod's metrics are not there, or not those of one process."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What the metrics were at a moment."""

    at_s: float
    streams: float
    in_flight: float
    cpu_s: float
    memory_bytes: float
    started_at_s: float


@dataclass(frozen=True, slots=True)
class Observed:
    """What the pod was like while the load was steady."""

    streams: float
    """Open, on average: that is what an autoscaler compares."""
    requests: float
    """In flight, streams included, on average."""
    cores: float
    memory_bytes: float
    """At most."""
    restarted: bool


def sample(address: str) -> Sample:
    """Read the metrics; raise ``Unreadable`` where they cannot be had, naming the remedy."""
    try:
        with urlopen(address, timeout=TIMEOUT_S) as answer:  # noqa: S310 - the operator's own address
            text = answer.read().decode()
    except (URLError, OSError, ValueError) as error:
        raise Unreadable(f"--metrics {address}: {error}. Forward port 9090 of one pod, and name it here.") from error
    return parse(text, address, time.monotonic())


def parse(text: str, address: str, at_s: float) -> Sample:
    """Return what is needed of the exposition; a gauge without a series is zero, a metric that is absent an error."""
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        sums[family.name] = 0.0
        for item in family.samples:
            sums[item.name] = sums.get(item.name, 0.0) + item.value
    for name in (STREAMS, IN_FLIGHT, CPU, MEMORY, STARTED):
        if name not in sums:
            raise Unreadable(
                f"--metrics {address}: {name} is missing. Name port 9090 of one pod that serves with one process."
            )
    return Sample(at_s, sums[STREAMS], sums[IN_FLIGHT], sums[CPU], sums[MEMORY], sums[STARTED])


def observed(samples: Sequence[Sample]) -> Observed:
    """Return what samples of one run come to, without its beginning; raise ``Unreadable`` of too few."""
    steady = samples[int(len(samples) * SETTLING) :]
    if len(steady) < SAMPLES_MIN:
        raise Unreadable(
            f"--duration: {len(samples)} readings of the metrics are too few. Let each run last 20 s or more."
        )
    first, last = steady[0], steady[-1]
    return Observed(
        streams=sum(item.streams for item in steady) / len(steady),
        requests=sum(item.in_flight for item in steady) / len(steady),
        cores=(last.cpu_s - first.cpu_s) / (last.at_s - first.at_s),
        memory_bytes=max(item.memory_bytes for item in samples),
        restarted=len({item.started_at_s for item in samples}) > 1,
    )


@contextmanager
def sampling(address: str) -> Iterator[list[Sample]]:
    """Read the metrics until the block ends; a reading that fails is left out, as of a pod that is restarting."""
    samples: list[Sample] = []
    ended = threading.Event()

    def read() -> None:
        while not ended.wait(EVERY_S):
            try:
                samples.append(sample(address))
            except Unreadable:
                continue

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def wait_until_idle(address: str, *, within_s: float = IDLE_WITHIN_S) -> None:
    """Wait until nothing of the last run is in flight; raise ``Unreadable`` where somebody else calls the pod."""
    end = time.monotonic() + within_s
    while (now := sample(address)).in_flight > 0 or now.streams > 0:
        if time.monotonic() >= end:
            raise Unreadable(
                f"--metrics {address}: {now.in_flight:.0f} requests in flight before the load. Take an idle pod."
            )
        time.sleep(EVERY_S)
