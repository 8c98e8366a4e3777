"""The dashboard and the alert rules: each expression means series that a scrape has."""

import asyncio
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

from livepush_asgi.metrics import text

from .test_metrics import NAMES, Samples, make_push, open_metrics, sampled, used

ROOM = Path(str(files("livepush_asgi.metrics")))
GUIDE = Path(__file__).parent.parent / "docs" / "guides" / "operate.md"
ALERTS = ROOM / "alerts.yml"
RULES: list[dict[str, Any]] = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
DASHBOARD: dict[str, Any] = json.loads((ROOM / "grafana.json").read_text())
EXPRESSIONS = {rule["alert"]: str(rule["expr"]) for rule in RULES} | {
    f"{panel['title']} {target['refId']}": target["expr"]
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
}
# What Prometheus adds to each sample, and what Grafana puts for a variable.
TARGET = {"job": "app", "instance": "localhost:8000"}
VARIABLES = {"$job": ".*", "$instance": ".*", "$__rate_interval": "5s"}

SELECTOR = re.compile(r"(livepush\w+)(?:\{([^}]*)\})?(\[)?")
MATCHER = re.compile(r'(\w+)(=~|=)"([^"]*)"')


def filled(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


@pytest.fixture(scope="module")
def samples() -> Samples:
    """Samples of a LivePush that was used a little."""

    async def scraped() -> Samples:
        push = make_push()
        async with used(push):
            return sampled(open_metrics(text(push).decode()))

    return asyncio.run(scraped())


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_each_selector_has_samples(name: str, samples: Samples) -> None:
    selectors = SELECTOR.findall(filled(EXPRESSIONS[name]))
    assert selectors
    for series, matchers, has_range in selectors:
        known = [{**TARGET, **dict(labels)} for found, labels in samples if found == series]
        assert known, series
        # Each value that a matcher names has to be there, and not one of them alone.
        for label, operator, wanted in MATCHER.findall(matchers):
            values = {labels[label] for labels in known}
            alternatives = wanted.split("|") if operator == "=~" else [re.escape(wanted)]
            for each in alternatives:
                assert any(re.fullmatch(each, value) for value in values), f"{series}: {label}={each}"
        # A rate is of a counter, and a gauge is no rate.
        assert bool(has_range) == series.endswith(("_total", "_bucket", "_count", "_sum")), series
    labels = {label for _, labels in samples for label, _ in labels} | set(TARGET)
    grouped = [
        label.strip() for by in re.findall(r"by \(([^)]*)\)", EXPRESSIONS[name]) for label in by.split(",")
    ]
    assert set(grouped) <= labels


def test_each_alert_is_answered_in_the_guide() -> None:
    answers = GUIDE.read_text().split("## Answer an alert")[1].split("\n## ")[0]
    assert re.findall(r"^### (\w+)$", answers, re.MULTILINE) == [rule["alert"] for rule in RULES]


def test_the_dashboard_shows_every_series() -> None:
    shown = {name for expression in EXPRESSIONS.values() for name, _, _ in SELECTOR.findall(expression)}
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in shown}
    assert families == set(NAMES.split())


def test_no_panel_lies_on_another() -> None:
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert all(x < 24 for x, _ in cells)
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
