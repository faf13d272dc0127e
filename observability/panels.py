"""What a dashboard is made of, and how Grafana reads it; knows no metric."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

Kind = Literal["timeseries", "stat", "table", "text"]

WIDTH = 24
"""Of Grafana's grid."""
HEIGHT = 8
DATASOURCE = {"type": "prometheus", "uid": "$datasource"}


@dataclass(frozen=True, slots=True)
class Query:
    """One expression, and how its series are called."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture."""

    title: str
    description: str
    unit: str
    """As Grafana names it."""
    queries: tuple[Query, ...]
    kind: Kind = "timeseries"
    width: int = 8
    steps: tuple[tuple[float | None, str], ...] = ()
    """From which value on which colour; the first from None."""
    stacked: bool = False
    most: float | None = None
    """Of the axis."""
    has_exemplars: bool = False
    text: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """Panels that belong together."""

    title: str
    panels: tuple[Panel, ...]
    collapsed: bool = False


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice at the head of a dashboard; several values, or all."""

    name: str
    label: str
    query: str


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One page."""

    uid: str
    title: str
    description: str
    rows: tuple[Row, ...]
    variables: tuple[Variable, ...]
    links: Mapping[str, str] = field(default_factory=dict)
    """Titles and addresses of others."""
    deploys: str = ""
    """Gives a series while a version is new."""

    def panels(self) -> Iterator[Panel]:
        """List what it shows."""
        return (panel for row in self.rows for panel in row.panels)

    def render(self) -> dict[str, Any]:
        """Return it as Grafana imports it."""
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["llm-api"],
            "editable": False,
            "graphTooltip": 1,
            "schemaVersion": 39,
            "refresh": "30s",
            "timezone": "browser",
            "time": {"from": "now-6h", "to": "now"},
            "links": [
                {"title": title, "url": url, "type": "link", "keepTime": True, "includeVars": True}
                for title, url in self.links.items()
            ],
            "annotations": {"list": [self._deploys()]},
            "templating": {"list": [_datasource(), *map(_variable, self.variables)]},
            "panels": list(_placed(self.rows)),
        }

    def _deploys(self) -> dict[str, Any]:
        return {
            "name": "Versions",
            "datasource": DATASOURCE,
            "enable": True,
            "iconColor": "blue",
            "expr": self.deploys,
            "titleFormat": "{{version}}",
        }


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}


def _variable(variable: Variable) -> dict[str, Any]:
    return {
        "name": variable.name,
        "label": variable.label,
        "type": "query",
        "datasource": DATASOURCE,
        "query": variable.query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        # Outside Kubernetes there may be no such label at all.
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _placed(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    ids = count(1)
    y = 0
    for row in rows:
        head: dict[str, Any] = {
            "id": next(ids),
            "type": "row",
            "title": row.title,
            "collapsed": row.collapsed,
            "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1},
            "panels": [],
        }
        y += 1
        x = 0
        placed = []
        for panel in row.panels:
            if x + panel.width > WIDTH:
                x, y = 0, y + HEIGHT
            place = {"x": x, "y": y, "w": panel.width, "h": HEIGHT}
            placed.append({"id": next(ids), "gridPos": place, **_rendered(panel)})
            x += panel.width
        y += HEIGHT
        if row.collapsed:
            head["panels"] = placed
            yield head
        else:
            yield head
            yield from placed


def _rendered(panel: Panel) -> dict[str, Any]:
    common = {"type": panel.kind, "title": panel.title, "description": panel.description}
    if panel.kind == "text":
        return {**common, "options": {"mode": "markdown", "content": panel.text}}
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.most is not None:
        defaults["max"] = panel.most
    if panel.steps:
        defaults["thresholds"] = {
            "mode": "absolute",
            "steps": [{"value": value, "color": colour} for value, colour in panel.steps],
        }
    if panel.stacked:
        defaults["custom"] = {"stacking": {"mode": "normal"}, "fillOpacity": 30}
    is_instant = panel.kind != "timeseries"
    return {
        **common,
        "datasource": DATASOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _options(panel.kind),
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": DATASOURCE,
                "expr": query.expr,
                "legendFormat": query.legend or "__auto",
                "instant": is_instant,
                "range": not is_instant,
                **({"exemplar": True} if panel.has_exemplars else {}),
                **({"format": "table"} if panel.kind == "table" else {}),
            }
            for number, query in enumerate(panel.queries)
        ],
    }


def _options(kind: Kind) -> dict[str, Any]:
    if kind == "stat":
        return {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "none"}
    if kind == "table":
        return {"showHeader": True}
    return {"legend": {"displayMode": "table", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}}
