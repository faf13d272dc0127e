"""Series that are found at once are the same as ever, and wrong labels are refused as ever."""

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from service.telemetry import labelled


def text(counter: type[prometheus_client.Counter], histogram: type[prometheus_client.Histogram]) -> str:
    registry = CollectorRegistry()
    calls = counter("calls", "Calls.", ["route", "code"], registry=registry)
    took = histogram("took_seconds", "Time.", ["route"], buckets=(0.1, 1), registry=registry)
    plain = counter("plain", "Without labels.", registry=registry)
    for route, code in (("/a", "200"), ("/a", "500"), ("/a", "200"), ("/b", "200")):
        calls.labels(route, code).inc()
        calls.labels(code=code, route=route).inc()
        took.labels(route).observe(0.5, {"trace_id": "abc"})
    for value in (-1, 0.1, 0.5, 1, 1.5):
        took.labels("/b").observe(value)
    plain.inc(3)
    lines = generate_latest(registry).decode().splitlines()
    return "\n".join(line for line in lines if "_created" not in line)


def test_what_is_told_is_what_the_library_tells() -> None:
    assert text(labelled.Counter, labelled.Histogram) == text(prometheus_client.Counter, prometheus_client.Histogram)


def test_the_same_labels_give_the_same_series() -> None:
    calls = labelled.Counter("calls", "Calls.", ["route", "code"], registry=CollectorRegistry())
    assert calls.labels("/a", "200") is calls.labels("/a", "200") is calls.labels(code="200", route="/a")
    assert calls.labels("/a", "200") is not calls.labels("/a", "500")


def test_wrong_labels_are_refused_each_time() -> None:
    calls = labelled.Counter("calls", "Calls.", ["route", "code"], registry=CollectorRegistry())
    for _ in range(2):
        with pytest.raises(ValueError, match="Incorrect label count"):
            calls.labels("/a")
        with pytest.raises(ValueError, match="Can't pass both"):
            calls.labels("/a", code="200")


def test_what_has_no_series_is_not_counted() -> None:
    registry = CollectorRegistry()
    calls = labelled.Counter("calls", "Calls.", ["route"], registry=registry)
    took = labelled.Histogram("took_seconds", "Time.", ["route"], registry=registry)
    with pytest.raises(AttributeError):
        calls.inc()
    with pytest.raises(AttributeError):
        took.observe(1)
    with pytest.raises(ValueError, match="non-negative"):
        calls.labels("/a").inc(-1)
