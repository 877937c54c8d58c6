"""The dashboard and the alert rules ask for metrics that there are, and every alert says what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from tests.chart.rendering import CHART, ROOT, render

#: What rules and panels call beside metrics, and the labels and ranges in them.
DOCUMENTED = {
    name
    for line in (ROOT / "docs" / "metrics.md").read_text().splitlines()
    if line.startswith("| `")
    for name in re.findall(
        r"`((?:tidewheel|vllm|controller_runtime|workqueue|leader|rest)[a-z_:]+)`", line.split("|")[1]
    )
}
METRIC = re.compile(r"\b((?:tidewheel_(?!dev)|vllm:|controller_runtime_|workqueue_|leader_election_)[a-z_]+)")


def metrics_in(expression: str) -> set[str]:
    """Names without the suffixes of a histogram's series."""
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in METRIC.findall(expression)}


def panels() -> list[dict[str, Any]]:
    dashboard = json.loads((CHART / "files/dashboards/pdservice.json").read_text())
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def rules() -> Iterator[dict[str, Any]]:
    rendered = render(matrix="observed").one("PrometheusRule")
    for group in rendered["spec"]["groups"]:
        yield from group["rules"]


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_a_panel_shows_metrics_that_are_documented(panel):
    for target in panel["targets"]:
        asked = metrics_in(target["expr"])
        assert asked
        assert asked <= DOCUMENTED
        assert target["legendFormat"]


def test_panels_do_not_overlap():
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels()]
    assert len(places) == len(set(places))
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels())


def test_every_alert_asks_for_documented_metrics_and_says_what_to_do():
    alerts = list(rules())
    assert len({alert["alert"] for alert in alerts}) == len(alerts)
    for alert in alerts:
        assert metrics_in(alert["expr"]), alert["alert"]
        assert metrics_in(alert["expr"]) <= DOCUMENTED, alert["alert"]
        assert alert["for"]
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert alert["annotations"].keys() == {"summary", "action"}


def test_the_dashboard_reaches_grafana_as_it_is_in_the_repository():
    config_map = render(matrix="observed").one("ConfigMap", "tidewheel-dashboard")
    assert config_map["metadata"]["labels"]["grafana_dashboard"] == "1"
    shown = json.loads(config_map["data"]["tidewheel-pdservice.json"])
    assert shown == json.loads((CHART / "files/dashboards/pdservice.json").read_text())


def test_neither_is_there_unless_asked_for():
    rendered = render()
    assert rendered.all("PrometheusRule") == []
    assert not [each for each in rendered.all("ConfigMap") if each["metadata"]["name"].endswith("dashboard")]
