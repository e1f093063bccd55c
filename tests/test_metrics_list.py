"""The list of metrics, and each place that names one: docs, dashboard, alert rules.

`python -m tests.test_metrics_list` writes the table of docs/metrics.md and the dashboard anew.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import promql_parser
import pytest
import yaml

from app.errors import Refusal
from app.metric_kinds import Buckets
from app.metrics import METRICS
from app.outcomes import OUTCOMES, Outcome
from deploy.grafana.dashboard import dashboard

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "metrics.md"
RULES = ROOT / "deploy" / "prometheus" / "keyturn.rules.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "keyturn.json"
PLACE = re.compile(r"(?<=<!-- metrics -->\n).*(?=<!-- /metrics -->)", re.DOTALL)

OF_THE_DOOR: dict[str, dict[str, Any]] = {"keyturn_metrics_unlisted_total": {}}
"""The metric that the door adds to the list: of no process, but of all."""
TARGET = {"job", "instance"}


def series() -> dict[str, dict[str, Any]]:
    """Each name that a query may use, with its labels and their words (None: any)."""
    known = dict(OF_THE_DOOR)
    for metric in METRICS:
        if isinstance(metric, Buckets):
            known[f"{metric.name}_bucket"] = {**metric.labels, "le": None}
            known[f"{metric.name}_sum"] = known[f"{metric.name}_count"] = dict(metric.labels)
        else:
            known[metric.name] = dict(metric.labels)
    return known


def wrong_with(expression: str) -> Iterator[str]:
    """The names in a query that lead nowhere: a metric, a label or a word of it."""
    known = series()
    for name, matchers in re.findall(r"\b(keyturn_\w+)(?:\{([^}]*)\})?", expression):
        if name not in known:
            yield f"no metric {name}"
            continue
        for label, _, words in re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', matchers):
            if label in TARGET:
                continue
            if label not in known[name]:
                yield f"{name} has no label {label}"
            elif known[name][label] is not None:
                yield from (
                    f"{name}: {label} is never {word}" for word in words.split("|") if word not in known[name][label]
                )
    names = re.findall(r"\bkeyturn_\w+", expression)
    labels = {label for name in names for label in known.get(name, ())} | TARGET
    for grouped in re.findall(r"\bby \(([^)]*)\)", expression):
        yield from (
            f"grouped by {each}, which nothing has" for each in re.split(r",\s*", grouped) if each not in labels
        )


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def queries() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", ())]


def table() -> str:
    lines = ["| metric | kind | labels | |\n|---|---|---|---|\n"]
    for metric in METRICS:
        labels = "; ".join(
            f"{label}: {', '.join(f'`{word}`' for word in words)}" for label, words in metric.labels.items()
        )
        lines.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.text} |\n")
    lines.append("| `keyturn_metrics_unlisted_total` | counter |  | Counts under a word that is on no list. |\n")
    return "".join(lines)


def test_the_page_lists_every_metric_as_it_is() -> None:
    found = PLACE.search(PAGE.read_text(encoding="utf-8"))
    assert found is not None
    assert found.group() == table(), "python -m tests.test_metrics_list writes it anew"


def test_the_page_explains_every_outcome() -> None:
    text = PAGE.read_text(encoding="utf-8").partition("## Outcomes")[2].partition("## The metrics")[0]
    explained = {word for line in text.splitlines() if line.startswith("| `") for word in re.findall(r"`(\w+)`", line)}
    counted = {
        word for metric in METRICS for word in metric.labels.get("outcome", ()) if metric.name.startswith(OF_DOORS)
    }
    assert explained >= counted | set(get_args(Outcome)), (counted | set(get_args(Outcome))) - explained


OF_DOORS = tuple(f"keyturn_{name}" for name in ("refreshes", "verifications", "logins", "exchanges", "logouts", "http"))


def test_names_follow_the_conventions_of_prometheus() -> None:
    names = [metric.name for metric in METRICS]
    assert len(names) == len(set(names)) > 30
    for metric in METRICS:
        assert re.fullmatch(r"keyturn_[a-z][a-z0-9_]*", metric.name), metric.name
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert not metric.name.endswith(("_count", "_sum", "_bucket", "_created", "_info")), metric.name
        assert metric.text.endswith("."), metric.name
        for label, words in metric.labels.items():
            assert re.fullmatch(r"[a-z]+", label), label
            assert label not in {"le", "quantile", "job", "instance"}
            assert len(words) == len(set(words)) > 1
            assert all(re.fullmatch(r"[a-z0-9_]+", word) for word in words), words


def test_the_number_of_series_is_bounded() -> None:
    assert sum(len(metric.series) * metric.width for metric in METRICS) < 4000


def test_every_refusal_has_an_outcome() -> None:
    def below(kind: type[Refusal]) -> Iterator[type[Refusal]]:
        for each in kind.__subclasses__():
            yield each
            yield from below(each)

    assert {each.error for each in below(Refusal)} == OUTCOMES.keys()
    assert set(OUTCOMES.values()) <= set(get_args(Outcome))


def test_every_alert_names_only_what_there_is() -> None:
    found = alerts()
    assert len(found) > 15
    assert [wrong for rule in found for wrong in wrong_with(rule["expr"])] == []


def test_every_alert_says_what_it_means_and_whom_it_wakes() -> None:
    for rule in alerts():
        assert re.fullmatch(r"Keyturn[A-Z]\w+", rule["alert"])
        assert rule["labels"]["severity"] in {"page", "ticket"}, rule["alert"]
        assert set(rule["annotations"]) == {"summary", "description"}, rule["alert"]
        # A label in the text is one that the query groups by; each alert has the instance only if the query keeps it.
        for label in re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]):
            grouped = re.findall(r"\bby \(([^)]*)\)", rule["expr"])
            assert rule["alert"] == "KeyturnInstanceDown" or any(
                label in re.split(r",\s*", each) for each in grouped
            ), rule


def test_every_query_of_the_dashboard_names_only_what_there_is() -> None:
    found = queries()
    assert len(found) > 30
    assert [wrong for query in found for wrong in wrong_with(query)] == []


def test_every_query_is_promql() -> None:
    chosen = {"$__rate_interval": "1m", "$instance": "a|b"}
    for query in [*queries(), *(rule["expr"] for rule in alerts())]:
        plain = query
        for variable, value in chosen.items():
            plain = plain.replace(variable, value)
        assert "$" not in plain
        promql_parser.parse(plain)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not here; the package `prometheus` has it")
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", RULES.name),
        ("test", "rules", "keyturn.rules.test.yml"),
        ("check", "config", "--syntax-only", "prometheus.yml"),
    ],
)
def test_promtool_finds_nothing_wrong(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=RULES.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboard_shows_every_metric() -> None:
    shown = {name for query in queries() for name in re.findall(r"\bkeyturn_\w+", query)}
    plain = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown} | shown
    assert [metric.name for metric in METRICS if metric.name not in plain] == []


def test_the_dashboard_is_made_from_the_list() -> None:
    assert json.loads(DASHBOARD.read_text()) == dashboard(), "python -m tests.test_metrics_list writes it anew"


@pytest.mark.parametrize(
    ("expression", "wrong"),
    [
        ("rate(keyturn_refresh_total[5m])", "no metric keyturn_refresh_total"),
        ('keyturn_refreshes_total{result="reuse"}', "keyturn_refreshes_total has no label result"),
        ('keyturn_refreshes_total{outcome="theft"}', "keyturn_refreshes_total: outcome is never theft"),
        ("sum by (way) (keyturn_refreshes_total)", "grouped by way, which nothing has"),
        ("keyturn_batch_size", "no metric keyturn_batch_size"),
    ],
)
def test_the_check_of_a_query_finds_what_is_not_there(expression: str, wrong: str) -> None:
    assert wrong in list(wrong_with(expression))


def test_what_counts_in_the_code_is_on_the_list() -> None:
    """Every metric is counted, set or observed somewhere. One that nobody counts would show a false zero."""
    source = "\n".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "app").rglob("*.py") if path.name != "metrics.py"
    )
    listed = re.findall(
        r"^([A-Z_]+) = (?:Counter|Gauge|Histogram)", (ROOT / "app/metrics.py").read_text(), re.MULTILINE
    )
    assert len(listed) == len(METRICS)
    used = {name for name in listed if re.search(rf"\b{name}\.(count|set|only|observe|at|refused|outcome)\(", source)}
    assert set(listed) - used == set()


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(PLACE.sub(lambda _: table(), text), encoding="utf-8")
    DASHBOARD.write_text(
        subprocess.run(
            [sys.executable, "-m", "deploy.grafana.dashboard"], check=True, capture_output=True, text=True
        ).stdout,
        encoding="utf-8",
    )
