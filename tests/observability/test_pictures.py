"""Dashboards as pictures: whole, well-formed, and with what was measured in them."""

from xml.etree import ElementTree as ET

import pytest

from observability.dashboards import DASHBOARDS
from observability.panels import Dashboard
from observability.pictures import Series, _round_up, drawn, formatted, labelled


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.uid)
@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_dashboard_is_drawn_whole(dashboard: Dashboard, count: int) -> None:
    lines = tuple(Series(f"<{number}>", ((0.0, 1.0), (1.0, 2.0))) for number in range(count))
    root = ET.fromstring(drawn(dashboard, lambda _: lines))  # noqa: S314 - our own
    texts = {text.text for text in root.iter("{http://www.w3.org/2000/svg}text")}
    for row in dashboard.rows:
        assert row.collapsed or {row.title, *(panel.title for panel in row.panels)} <= texts


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [(0.9995, "percentunit", "100 %"), (0.25, "s", "250 ms"), (2.5, "s", "2.5 s"), (1.5, "currencyUSD", "$1.5")],
)
def test_values_are_said_in_their_unit(value: float, unit: str, said: str) -> None:
    assert formatted(value, unit) == said


def test_an_axis_ends_at_a_round_figure() -> None:
    assert [_round_up(value) for value in (0, 0.03, 1, 7, 11)] == [1, 0.05, 1, 10, 20]


def test_a_legend_is_filled() -> None:
    assert labelled("{{a}} at {{b}}", {"a": "x", "b": "y"}) == "x at y"
    assert labelled("oldest", {}) == "oldest"
