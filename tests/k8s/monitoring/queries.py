"""Prometheus queries of the dashboard's panels and the alerts, and the series that Prometheus
keeps."""

import json
import re
from typing import Any

import yaml

from tests.k8s.manifests import K8S, ROOT

MONITORING = K8S / "components" / "monitoring"
OPERATIONS = ROOT / "docs" / "operations.md"
NAME = re.compile(r"\b(?:ray|probe)_\w+")
OF_THE_EXPORTER = {"probe_success"}
"""Metrics of the blackbox exporter, which are not in Ray's output."""
OF_VLLM = "ray_vllm_.+"
"""Pattern of the metrics of vLLM, which only services with `serving.engine: vllm` have."""
OF_KUBERNETES = {
    "kuberay_job_deployment_status": {"namespace", "name", "uid", "deployment_status"},
    "kuberay_service_condition_ready": {"namespace", "name", "uid", "condition"},
    "kube_job_status_failed": {"namespace", "job_name", "reason"},
    "kube_job_created": {"namespace", "job_name"},
    "kube_job_failed": {"namespace", "job_name", "condition"},
    "kube_cronjob_created": {"namespace", "cronjob"},
    "kube_cronjob_spec_suspend": {"namespace", "cronjob"},
    "kube_cronjob_status_last_schedule_time": {"namespace", "cronjob"},
}
"""Metrics of KubeRay's operator 1.7 and kube-state-metrics 2, with the labels in their source."""
WHEN_IT_HAPPENS = {
    "ray_tailorbird_log_rows_dropped_total",
    "ray_tailorbird_first_token_seconds_bucket",
    "ray_tailorbird_endpoint_other_model_total",
    "ray_tailorbird_endpoint_requests_total",
    "ray_tailorbird_endpoint_spend_total",
    "ray_tailorbird_hybrid_answers_total",
}
"""Metrics that do not exist until rows are lost, a chat model streams, or an endpoint or a hybrid
answers."""


def rules() -> list[dict[str, Any]]:
    (document,) = yaml.safe_load_all((MONITORING / "rules.yaml").read_text())
    return [rule for group in document["spec"]["groups"] for rule in group["rules"]]


def panels() -> dict[str, list[str]]:
    """Return the queries of each panel by title."""
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    return {
        panel["title"]: [target["expr"] for target in panel["targets"]]
        for panel in dashboard["panels"]
    }


def variables() -> list[str]:
    """Return the queries of the dashboard's variables."""
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    return [
        variable["query"]
        for variable in dashboard["templating"]["list"]
        if variable["type"] == "query"
    ]


def queried_series() -> set[str]:
    """Return the names of all metrics in alerts and panels."""
    queries = (
        [rule["expr"] for rule in rules()]
        + [query for panel in panels().values() for query in panel]
        + variables()
    )
    return {name for query in queries for name in NAME.findall(query)}


def kept() -> list[str]:
    """Return the patterns of the kept metrics of Ray nodes."""
    documents = yaml.safe_load_all((MONITORING / "monitors.yaml").read_text())
    (monitor,) = (document for document in documents if document["metadata"]["name"] == "ray")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    (relabeling,) = (
        relabeling_config
        for relabeling_config in endpoint["metricRelabelings"]
        if relabeling_config["sourceLabels"] == ["__name__"]
    )
    patterns: list[str] = relabeling["regex"].split("|")
    return patterns


def exposed(exposition: str) -> set[str]:
    """Return the names of the samples in the output of a metrics endpoint."""
    return {
        match[1] for match in re.finditer(r"^([a-zA-Z_:][\w:]*)(?:\{| )", exposition, re.MULTILINE)
    }
