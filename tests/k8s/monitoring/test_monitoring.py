"""The alerts are those of docs/operations.md; panels and monitors query existing metrics."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.http import metrics
from serving.http.metrics import Metric
from tests.k8s.manifests import K8S, build, environment, matches, of_kind, pods_of
from tests.k8s.monitoring import queries

SERIES = {
    f"ray_{metric.name}": metric for metric in vars(metrics).values() if isinstance(metric, Metric)
}
HISTOGRAMS = {
    f"{name}_{end}": metric
    for name, metric in SERIES.items()
    if metric.buckets
    for end in ("bucket", "sum", "count")
}
PROMETHEUS_LABELS = {"namespace", "pod", "job", "instance"}
RAY_LABELS = {"application", "deployment", "replica", "le", "ip", "status_code"}


def table(page: Path, heading: str) -> list[list[str]]:
    """Return the rows of the first table after a heading of a page."""
    text = page.read_text().split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def documented_alerts() -> dict[str, str]:
    """Return the condition of each alert of docs/operations.md. The command itself prints the state
    of a challenger."""
    headings = ("Alerts of a service or a run", "When `watch` raises an alarm")
    rows = [row for heading in headings for row in table(queries.OPERATIONS, heading)]
    return {row[0]: row[1] for row in rows if row[0] != "challenger"}


def test_the_alerts_are_those_of_the_documentation() -> None:
    assert [rule["annotations"]["alarm"] for rule in queries.rules()] == [*documented_alerts()]


def test_durations_and_thresholds_of_alerts_are_those_of_the_documentation() -> None:
    expected = documented_alerts()
    for rule in queries.rules():
        condition = expected[rule["annotations"]["alarm"]]
        minutes = re.search(r"for (\d+) minutes?", condition)
        if minutes:
            assert rule["for"] == f"{minutes[1]}m", rule["alert"]
        share = re.search(r"over ([\d.]+)%", condition)
        if share:
            assert float(rule["expr"].rsplit(">", 1)[1]) == pytest.approx(float(share[1]) / 100), (
                rule["alert"]
            )
        for name in re.findall(r"\b(?:ray|kuberay|kube)_\w+", condition):
            assert name in rule["expr"]
        hours = re.search(r"over (\d+) hours", condition)
        if hours:
            assert f"> {hours[1]} * 3600" in rule["expr"]


def test_the_dashboard_has_every_panel_of_the_documentation() -> None:
    rows = table(queries.OPERATIONS, "Dashboard")
    panels = queries.panels()
    assert set(panels) >= {row[0] for row in rows}
    for title, cell in rows:
        expected = set(queries.NAME.findall(cell)) or {
            "ray_serve_num_http_requests_total"
        }  # "the same with"
        assert {
            name for query in panels[title] for name in queries.NAME.findall(query)
        } == expected, title


def test_every_query_uses_existing_metrics_and_labels() -> None:
    ours = {name for name in queries.queried_series() if name.startswith("ray_tailorbird")}
    assert len(ours) > 7
    assert ours <= {*(name for name, metric in SERIES.items() if not metric.buckets), *HISTOGRAMS}
    every = [rule["expr"] for rule in queries.rules()] + [
        expr for panel in queries.panels().values() for expr in panel
    ]
    for query in every:
        for name, chosen in re.findall(r"(ray_tailorbird_\w+)\{([^}]*)\}", query):
            labels = {*(SERIES | HISTOGRAMS)[name].labels, *PROMETHEUS_LABELS, *RAY_LABELS}
            assert set(re.findall(r"(\w+)=", chosen)) <= labels, query
        for by in re.findall(r"by \(([^)]*)\)", query):
            names = set(queries.NAME.findall(query)) & {*SERIES, *HISTOGRAMS}
            labels = set().union(*((SERIES | HISTOGRAMS)[name].labels for name in names))
            others = {
                name: labels
                for name, labels in queries.OF_KUBERNETES.items()
                if re.search(rf"\b{name}\b", query)
            }
            labels |= set().union(*others.values())
            assert set(by.split(", ")) <= labels | PROMETHEUS_LABELS | RAY_LABELS, query


def test_every_alert_on_runs_services_and_watches_uses_existing_metrics_and_labels() -> None:
    expressions = [
        rule["expr"] for rule in queries.rules() if not queries.NAME.findall(rule["expr"])
    ]
    names = r"\b((?:kuberay|kube)_\w+)"
    named = {name for expression in expressions for name in re.findall(names, expression)}
    assert named <= {*queries.OF_KUBERNETES}
    assert {name.partition("_")[0] for name in named} == {"kuberay", "kube"}
    for expression in expressions:
        for name, chosen in re.findall(names + r"\{([^}]*)\}", expression):
            assert set(re.findall(r"(\w+)=", chosen)) <= queries.OF_KUBERNETES[name], expression


def test_every_queried_series_is_kept() -> None:
    for name in queries.queried_series() - queries.OF_THE_EXPORTER:
        assert any(re.fullmatch(pattern, name) for pattern in queries.kept()), name


def monitor_of(name: str, monitor: str) -> dict[str, Any]:
    """Return a PodMonitor of an overlay."""
    documents = of_kind(build(f"{name}/monitoring"), "PodMonitor")
    return next(document for document in documents if document["metadata"]["name"] == monitor)


@pytest.mark.parametrize("name", ["staging", "prod"])
def test_only_the_monitoring_part_needs_the_prometheus_operator_and_prometheus_selects_all_of_it(
    name: str,
) -> None:
    """A cluster without the Prometheus Operator refuses its kinds. kube-prometheus-stack selects by
    `release`."""
    of_prometheus = [
        doc for doc in environment(name) if doc["apiVersion"].startswith("monitoring.coreos.com/")
    ]
    part = build(f"{name}/monitoring")
    assert of_prometheus == [document for document in part if document["kind"] != "ConfigMap"]
    assert {document["metadata"]["labels"]["release"] for document in part} == {
        "kube-prometheus-stack"
    }
    operator = yaml.safe_load((K8S / "operator" / "monitoring.yaml").read_text())["metrics"][
        "serviceMonitor"
    ]
    assert operator["additionalLabels"] == {"release": "kube-prometheus-stack"}
    assert (
        operator["honorLabels"] is True
    )  # otherwise every run and service has the operator's namespace


@pytest.mark.parametrize("name", ["staging", "prod"])
def test_the_pod_monitor_selects_ray_pods_and_their_metrics_port(name: str) -> None:
    monitor = monitor_of(name, "ray")
    ray = [
        pod
        for part in ("service", "job")
        for pod in pods_of(build(f"{name}/{part}"))
        if "ray.io/cluster" in pod.labels
    ]
    assert len(ray) >= 4
    for pod in ray:
        assert matches(monitor["spec"]["selector"], pod.labels)
        ports = {port["name"]: port["containerPort"] for port in pod.spec["containers"][0]["ports"]}
        assert [ports[endpoint["port"]] for endpoint in monitor["spec"]["podMetricsEndpoints"]] == [
            8080
        ]
    (client,) = pods_of(build(f"{name}/promote"))
    assert not matches(monitor["spec"]["selector"], client.labels)


@pytest.mark.parametrize("name", ["staging", "prod"])
def test_the_probe_belongs_to_the_service_and_has_the_job_name_of_the_alert(name: str) -> None:
    (probe,) = of_kind(build(f"{name}/monitoring"), "Probe")
    assert len(of_kind(environment(name), "Probe")) == 1
    # `render` writes the service's address (tests/unit/release/test_manifests.py); one that is
    # missing fires at once.
    assert probe["spec"]["targets"]["staticConfig"]["static"] == [
        "http://SERVICE-serve-svc.NAMESPACE:8000/readyz"
    ]
    (rule,) = (rule for rule in queries.rules() if rule["annotations"]["alarm"] == "unavailable")
    assert f'job="{probe["spec"]["jobName"]}"' in rule["expr"]


def test_grafana_loads_the_tested_dashboard() -> None:
    (config,) = of_kind(build("prod/monitoring"), "ConfigMap")
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(config["data"]["dashboard.json"]) == json.loads(
        (queries.MONITORING / "dashboard.json").read_text()
    )
