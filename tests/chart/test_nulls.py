"""A value that is set to null: Helm takes it away, with its default. It is refused by name, or does without."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
import yaml

from tests.chart.rendering import CHART, Refused, pod, render
from tests.chart.test_every_value import merged, nested
from tests.chart.test_platform import ALL

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text())
BY_HPA = merged({name: value for name, value in ALL.items() if name != "keda"}, {"autoscaling": {"enabled": True}})
GO_TOGETHER = {"dnsConfig", "keda.serverAddress", "httpRoute.parentRefs", "ingress.hosts"}
GO_TOGETHER |= {"autoscaling.cpuPercent", "webhookSecrets.existingSecret", "webhookSecrets.keys"}
"""Needed only with others that ``ALL`` sets, and refused with a sentence without them."""


def places(node: dict[str, Any], above: str = "") -> Iterator[tuple[str, bool]]:
    """Go through all names of the chart's own: whether each is required."""
    for name, below in node["properties"].items():
        place = f"{above}{name}"
        yield place, name in node.get("required", ())
        if place != "config" and "required" in below:
            yield from places(below, f"{place}.")


PLACES = dict(places(SCHEMA))


@pytest.mark.parametrize("place", ["redis.password", "worker.autoscaling", "config", "listenAddress", "image.tag"])
def test_what_is_needed_is_refused_by_name_and_nothing_else(place: str) -> None:
    if not PLACES[place]:
        assert render(nested(place, None))
        return
    with pytest.raises(Refused, match=rf"schema(.|\n)*'{place.rpartition('.')[2]}'"):
        render(nested(place, None))


@pytest.mark.parametrize("given", [ALL, BY_HPA], ids=["keda", "hpa"])
def test_all_that_may_be_left_out_at_once_leaves_whole_objects(given: dict[str, Any]) -> None:
    for place, required in PLACES.items():
        if not required and place not in GO_TOGETHER:
            given = merged(given, nested(place, None))
    objects = render(given)
    assert len(objects) >= 22
    assert list(nulls(objects, "")) == []


def nulls(tree: Any, above: str) -> Iterator[str]:
    match tree:
        case dict():
            for name, value in tree.items():
                yield from nulls(value, f"{above}/{name}")
        case list():
            for number, value in enumerate(tree):
                yield from nulls(value, f"{above}/{number}")
        case None | "<nil>" | "<no value>":
            yield above


def test_the_defaults_have_all_that_is_required() -> None:
    jsonschema_rs.validate(SCHEMA, DEFAULTS)
    assert sum(PLACES.values()) > 80


def test_a_probe_can_be_left_out() -> None:
    (container,) = pod(render({"probes": {"startup": None}}))["spec"]["containers"]
    assert "startupProbe" not in container
    assert "livenessProbe" in container
