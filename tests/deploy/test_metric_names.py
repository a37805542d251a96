"""Alerts, dashboard and docs speak of metrics that exist, and alerts do what their tests say."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml  # type: ignore[import-untyped]  # PyYAML has no type information

from jaxrec.serving.drift import Drift
from jaxrec.serving.metrics import Metrics
from jaxrec.serving.served import Served

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
ALERTS = DEPLOY / "prometheus" / "alerts.yaml"
DASHBOARD = DEPLOY / "grafana" / "jaxrec.json"
DOCS = ROOT / "docs" / "operations.md"
# What Prometheus adds to everything that it reads.
ADDED = {"instance", "job"}
WORDS = {"by", "on", "ignoring", "group_left", "group_right", "without", "or", "and", "unless"}
FEATURE = {"edges": [1.0], "shares": [0.5, 0.5], "sample": [0.5, 1.5]}


def rules() -> list[dict[str, str]]:
    return [
        rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]
    ]


def exported() -> dict[str, set[str]]:
    """The labels of every series that the server exports, by name."""
    metrics = Metrics()
    model = Served(name="", fingerprint="", popularity=np.zeros(2), drift=Drift({"x": FEATURE}))
    metrics.show_models({"primary": model})
    metrics.request("/", 200, 0.0)
    metrics.stage("parse", 0.0)
    metrics.rejected("overloaded")
    metrics.impression(model, None)
    metrics.feedback("", "view")
    return {
        sample.name: set(sample.labels)
        for family in metrics.registry.collect()
        for sample in family.samples
    }


def expressions() -> Iterator[str]:
    for rule in rules():
        yield rule["expr"]
    dashboard = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel.get("targets", []))
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["definition"]


def selected(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Each metric that an expression names, with the labels by which its series are chosen."""
    bare = re.sub(r'"[^"]*"|\[[^\]]*\]', "", expression)
    bare = re.sub(r"\b(by|on|ignoring|group_left)\s*\([^)]*\)", " ", bare)
    bare = re.sub(r"label_values\((\w+), (\w+)\)", r"\1{\2=}", bare)
    for name, matchers in re.findall(r"\b([a-zA-Z_:][\w:]*)\b(?!\s*\()(?:{([^}]*)})?", bare):
        if name not in WORDS:
            yield name, set(re.findall(r"(\w+)\s*[=!]", matchers))


def test_selected_sees_names_and_labels_and_nothing_else() -> None:
    expression = (
        'histogram_quantile(0.5, sum by (le, a) (rate(x_bucket{a=~"y{2}",b!="c"}[5m]))) '
        "/ on (a) group_left (b) max(recorded:x:y) > 2e3 or vector(0)"
    )
    assert list(selected(expression)) == [("x_bucket", {"a", "b"}), ("recorded:x:y", set())]


@pytest.mark.parametrize("expression", sorted(set(expressions())))
def test_metrics_and_labels_that_are_asked_for_exist(expression: str) -> None:
    series = exported()
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    found = list(selected(expression))
    assert found
    known = {label for name, _ in found for label in series.get(name, ())} | ADDED
    for name, labels in found:
        assert name in recorded or name in series, f"nothing exports {name}"
        assert name in recorded or labels <= series[name] | ADDED, f"{name} has no such labels"
    if not any(name in recorded for name, _ in found):
        for grouped in re.findall(r"\b(?:by|on|ignoring) \(([^)]*)\)", expression):
            assert set(re.findall(r"\w+", grouped)) <= known


def test_every_metric_of_ours_is_on_the_page_and_in_the_dashboard_or_an_alert() -> None:
    page = DOCS.read_text()
    families = {name for name in re.findall(r"`(jaxrec_\w+)", page)}
    of_ours = {family.name for family in Metrics().registry.collect() if "jaxrec" in family.name}
    counters = {name.removesuffix("_total") for name in families}
    assert counters == of_ours
    asked = {name for expression in expressions() for name, _ in selected(expression)}
    for family in of_ours:
        assert any(name.startswith(family) for name in asked), f"nobody looks at {family}"


def test_every_alert_is_explained_and_has_been_seen_to_fire() -> None:
    tests = yaml.safe_load((DEPLOY / "prometheus" / "alerts_test.yaml").read_text())["tests"]
    fired = {
        case["alertname"]
        for test in tests
        for case in test.get("alert_rule_test", [])
        if case["exp_alerts"]
    }
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    assert alerts == fired
    assert alerts == set(re.findall(r"^\| `(Jaxrec\w+)` \|", DOCS.read_text(), re.MULTILINE))


def test_the_rules_do_what_their_tests_say() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not here; it is in Debian's package prometheus")
    for command, file in (("check", ALERTS), ("test", ALERTS.with_stem("alerts_test"))):
        run = [promtool, command, "rules", str(file)]
        done = subprocess.run(run, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_panels_have_their_own_number_and_place_and_say_what_they_show() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["type"] == "row" or panel["description"]
