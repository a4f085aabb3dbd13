"""The alerts are those of docs/operations.md and fire when they should; panels and monitors query existing metrics."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.http import metrics
from serving.http.metrics import Metric
from tests.k8s import queries
from tests.k8s.manifests import build, environment, matches, of_kind, pods_of

SERIES = {f"ray_{metric.name}": metric for metric in vars(metrics).values() if isinstance(metric, Metric)}
HISTOGRAMS = {
    f"{name}_{end}": metric for name, metric in SERIES.items() if metric.buckets for end in ("bucket", "sum", "count")
}
PROMETHEUS_LABELS = {"namespace", "pod", "job", "instance"}
RAY_LABELS = {"application", "deployment", "replica", "le", "ip", "status_code"}
A = 'namespace="n", application="a"'


def table(heading: str) -> list[list[str]]:
    """Return the rows of the first table after a heading of docs/operations.md."""
    text = queries.OPERATIONS.read_text().split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_the_alerts_are_those_of_the_documentation() -> None:
    assert [rule["annotations"]["alarm"] for rule in queries.rules()] == [row[0] for row in table("Alerts")]


def test_durations_and_thresholds_of_alerts_are_those_of_the_documentation() -> None:
    expected = {row[0]: row[1] for row in table("Alerts")}
    for rule in queries.rules():
        condition = expected[rule["annotations"]["alarm"]]
        minutes = re.search(r"for (\d+) minutes?", condition)
        if minutes:
            assert rule["for"] == f"{minutes[1]}m", rule["alert"]
        share = re.search(r"over ([\d.]+) %", condition)
        if share:
            assert float(rule["expr"].rsplit(">", 1)[1]) == pytest.approx(float(share[1]) / 100), rule["alert"]
        for name in re.findall(r"ray_\w+", condition):
            assert name in rule["expr"]


def test_the_dashboard_has_every_panel_of_the_documentation() -> None:
    rows = table("Dashboard")
    panels = queries.panels()
    assert set(panels) >= {row[0] for row in rows}
    for title, cell in rows:
        expected = set(queries.NAME.findall(cell)) or {"ray_serve_num_http_requests_total"}  # "the same with"
        assert {name for query in panels[title] for name in queries.NAME.findall(query)} == expected, title


def test_every_query_uses_existing_metrics_and_labels() -> None:
    ours = {name for name in queries.queried_series() if name.startswith("ray_tailorbird")}
    assert len(ours) > 7
    assert ours <= {*(name for name, metric in SERIES.items() if not metric.buckets), *HISTOGRAMS}
    every = [rule["expr"] for rule in queries.rules()] + [expr for panel in queries.panels().values() for expr in panel]
    for query in every:
        for name, chosen in re.findall(r"(ray_tailorbird_\w+)\{([^}]*)\}", query):
            labels = {*(SERIES | HISTOGRAMS)[name].labels, *PROMETHEUS_LABELS, *RAY_LABELS}
            assert set(re.findall(r"(\w+)=", chosen)) <= labels, query
        for by in re.findall(r"by \(([^)]*)\)", query):
            names = set(queries.NAME.findall(query)) & {*SERIES, *HISTOGRAMS}
            labels = set().union(*((SERIES | HISTOGRAMS)[name].labels for name in names))
            assert set(by.split(", ")) <= labels | PROMETHEUS_LABELS | RAY_LABELS, query


def test_every_queried_series_is_kept() -> None:
    for name in queries.queried_series() - queries.OF_THE_EXPORTER:
        assert any(re.fullmatch(pattern, name) for pattern in queries.kept()), name


@pytest.mark.parametrize("name", ["staging", "prod"])
def test_the_pod_monitor_selects_ray_pods_and_their_metrics_port(name: str) -> None:
    (monitor,) = of_kind(build(name), "PodMonitor")
    ray = [
        pod for part in ("service", "job") for pod in pods_of(build(f"{name}/{part}")) if "ray.io/cluster" in pod.labels
    ]
    assert len(ray) >= 4
    for pod in ray:
        assert matches(monitor["spec"]["selector"], pod.labels)
        ports = {port["name"]: port["containerPort"] for port in pod.spec["containers"][0]["ports"]}
        assert [ports[endpoint["port"]] for endpoint in monitor["spec"]["podMetricsEndpoints"]] == [8080]
    (client,) = pods_of(build(f"{name}/promote"))
    assert not matches(monitor["spec"]["selector"], client.labels)


@pytest.mark.parametrize("name", ["staging", "prod"])
def test_the_probe_belongs_to_the_service_and_has_the_job_name_of_the_alert(name: str) -> None:
    (probe,) = of_kind(build(f"{name}/service"), "Probe")
    assert len(of_kind(environment(name), "Probe")) == 1
    # `render` writes the service's address (tests/unit/release/test_manifests.py); one that is missing fires at once.
    assert probe["spec"]["targets"]["staticConfig"]["static"] == ["http://SERVICE-serve-svc.NAMESPACE:8000/readyz"]
    (rule,) = (rule for rule in queries.rules() if rule["annotations"]["alarm"] == "unavailable")
    assert f'job="{probe["spec"]["jobName"]}"' in rule["expr"]


def test_grafana_loads_the_tested_dashboard() -> None:
    (config,) = of_kind(build("prod"), "ConfigMap")
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(config["data"]["dashboard.json"]) == json.loads(
        (queries.MONITORING / "dashboard.json").read_text()
    )


@pytest.fixture(scope="module")
def promtool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the rules as Prometheus reads them; skip the tests if promtool is not installed."""
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian's package promtool)")
    folder = tmp_path_factory.mktemp("rules")
    (document,) = of_kind(build("prod"), "PrometheusRule")
    (folder / "rules.yaml").write_text(yaml.safe_dump(document["spec"]))
    return folder


def run_promtool(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["promtool", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_accepts_the_rules(promtool: Path) -> None:
    assert f"{len(queries.rules())} rules found" in run_promtool(promtool, "check", "rules", "rules.yaml")


def series(name: str, labels: str, values: str) -> dict[str, str]:
    return {"series": f"{name}{{{labels}}}", "values": values}


def requests(status: str, each_minute: int) -> dict[str, str]:
    return series("ray_serve_num_http_requests_total", f'{A}, status_code="{status}"', f"0+{each_minute}x60")


def buckets(*, slow: int) -> list[dict[str, str]]:
    """Return the series of a hundred answers a minute, `slow` of them longer than a second."""
    route = f'{A}, route="/v1/classify"'
    name = "ray_tailorbird_request_seconds_bucket"
    return [
        series(name, f'{route}, le="1.0"', f"0+{100 - slow}x60"),
        *(series(name, f'{route}, le="{le}"', "0+100x60") for le in ("2.5", "+Inf")),
    ]


def node(used: int) -> list[dict[str, str]]:
    return [
        series("ray_node_mem_used", 'namespace="n", ip="1"', f"{used}x60"),
        series("ray_node_mem_total", 'namespace="n", ip="1"', "100x60"),
    ]


LABELS_OF_A = {"namespace": "n", "application": "a"}
# An alert, series that fire it, minutes until it fires, its labels and summary, and series that must not fire it.
CASES: list[tuple[str, list[dict[str, str]], int, dict[str, str], str, list[dict[str, str]]]] = [
    (
        "TailorbirdUnavailable",
        [series("probe_success", 'job="tailorbird-readyz", instance="u"', "0x60")],
        1,
        {"job": "tailorbird-readyz", "instance": "u"},
        "u does not answer with 200",
        [series("probe_success", 'job="tailorbird-readyz"', "1x60"), series("probe_success", 'job="other"', "0x60")],
    ),
    (
        "TailorbirdErrors",
        [requests("200", 998), requests("503", 2)],
        6,
        LABELS_OF_A,
        "0.2% of the requests to a fail with 5xx",
        [requests("200", 9999), requests("500", 1)],
    ),
    (
        "TailorbirdRejections",
        [requests("200", 98), requests("429", 2)],
        11,
        LABELS_OF_A,
        "2% of the requests to a are rejected with 429",
        [requests("200", 199), requests("429", 1)],
    ),
    (
        "TailorbirdHighLatency",
        buckets(slow=2),
        11,
        LABELS_OF_A,
        "the 99th percentile of the latency of a is 1.75s",
        buckets(slow=0),
    ),
    (
        "TailorbirdVersionRefused",
        [series("ray_tailorbird_version_refused", f'{A}, replica="{replica}"', f"{replica}x60") for replica in (0, 1)],
        5,
        LABELS_OF_A,
        "the last version deployed for a cannot be loaded; the previous one still serves",
        [series("ray_tailorbird_version_refused", A, "0x60")],
    ),
    (
        "TailorbirdLogRowsLost",
        [
            series("ray_tailorbird_log_rows_dropped_total", f'{A}, kind="answer"', "_x6 3x60")
        ],  # exported from the first lost row on
        7,
        LABELS_OF_A | {"kind": "answer"},
        "rows of the request log of a were dropped: 3",
        [series("ray_tailorbird_log_rows_dropped_total", f'{A}, kind="answer"', "3x60")],
    ),
    (
        "TailorbirdLogRowsLost",
        [series("ray_tailorbird_log_rows_dropped_total", f'{A}, kind="answer"', "3x20 5x60")],
        22,
        LABELS_OF_A | {"kind": "answer"},
        "rows of the request log of a were dropped: 2",
        [series("ray_tailorbird_log_rows_dropped_total", f'{A}, kind="answer"', "0+0x60")],
    ),
    (
        "TailorbirdOtherModel",
        [series("ray_tailorbird_endpoint_other_model_total", f'{A}, version="v"', "_x6 3x60")],
        7,
        LABELS_OF_A | {"version": "v"},
        "the endpoint of v (a) reports another model than was evaluated",
        [series("ray_tailorbird_endpoint_other_model_total", f'{A}, version="v"', "3x60")],
    ),
    (
        "TailorbirdEndpointFailures",
        [
            series("ray_tailorbird_endpoint_requests_total", f'{A}, version="v", outcome="{outcome}"', f"0+{number}x60")
            for outcome, number in (("ok", 80), ("endpoint_busy", 15), ("endpoint_timeout", 5))
        ],
        6,
        LABELS_OF_A | {"version": "v"},
        "20% of the requests of v (a) to its endpoint fail",
        [
            series("ray_tailorbird_endpoint_requests_total", f'{A}, version="v", outcome="{outcome}"', f"0+{number}x60")
            for outcome, number in (("ok", 50), ("cancelled", 45), ("endpoint_busy", 5))
        ],
    ),
    (
        "TailorbirdFallbacks",
        [
            series("ray_tailorbird_hybrid_answers_total", f'{A}, version="v", fallback="{fallback}"', f"0+{number}x60")
            for fallback, number in (("no", 98), ("yes", 2))
        ],
        6,
        LABELS_OF_A | {"version": "v"},
        "2% of the answers of v (a) are not of the part that should answer",
        [series("ray_tailorbird_hybrid_answers_total", f'{A}, version="v", fallback="no"', "0+100x60")],
    ),
    (
        "TailorbirdApiKeys",
        [series("ray_tailorbird_api_key_errors", f'{A}, replica="{replica}"', f"{replica}x60") for replica in (0, 1)],
        5,
        LABELS_OF_A,
        "1 lines of the API keys of a cannot be read",
        [series("ray_tailorbird_api_key_errors", A, "0x60")],
    ),
    (
        "TailorbirdSecurityLog",
        [series("ray_tailorbird_security_log_failing", A, "1x60")],
        5,
        LABELS_OF_A,
        "replicas of a cannot write the security log",
        [series("ray_tailorbird_security_log_failing", A, "0x60")],
    ),
    (
        "TailorbirdMemory",
        node(95),
        2,
        {"namespace": "n", "ip": "1"},
        "1 uses 95% of its memory; at 95% Ray kills processes",
        node(89),
    ),
]


def test_each_alert_has_a_case() -> None:
    assert {name for name, *_ in CASES} == {rule["alert"] for rule in queries.rules()}


def test_each_alert_fires_on_time_and_only_above_its_threshold(promtool: Path) -> None:
    tests: list[dict[str, Any]] = []
    alerts = {rule["alert"]: rule for rule in queries.rules()}
    for name, firing, minutes, labels, summary, quiet in CASES:
        annotations = {"alarm": alerts[name]["annotations"]["alarm"], "summary": summary}
        alert = {"exp_labels": labels | alerts[name]["labels"], "exp_annotations": annotations}
        fires = {"eval_time": f"{minutes + 1}m", "alertname": name, "exp_alerts": [alert]}
        silent = {"eval_time": f"{max(minutes - 2, 0)}m", "alertname": name, "exp_alerts": []}
        tests.append({"interval": "1m", "input_series": firing, "alert_rule_test": [silent, fires]})
        tests.append(
            {
                "interval": "1m",
                "input_series": quiet,
                "alert_rule_test": [{"eval_time": "40m", "alertname": name, "exp_alerts": []}],
            }
        )
    (promtool / "tests.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": tests}))
    run_promtool(promtool, "test", "rules", "tests.yaml")
