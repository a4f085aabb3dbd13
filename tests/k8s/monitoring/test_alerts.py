"""Prometheus accepts the rules, and each alert fires when it should."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.http.metrics import ENDPOINT_SPEND
from tests.k8s.manifests import build, of_kind
from tests.k8s.monitoring import queries

A = 'namespace="n", application="a"'


@pytest.fixture(scope="module")
def promtool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the rules as Prometheus reads them; skip the tests if promtool is not
    installed."""
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian's package promtool)")
    folder = tmp_path_factory.mktemp("rules")
    (document,) = of_kind(build("prod/monitoring"), "PrometheusRule")
    (folder / "rules.yaml").write_text(yaml.safe_dump(document["spec"]))
    return folder


def run_promtool(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["promtool", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_accepts_the_rules(promtool: Path) -> None:
    assert f"{len(queries.rules())} rules found" in run_promtool(
        promtool, "check", "rules", "rules.yaml"
    )


def series(name: str, labels: str, values: str) -> dict[str, str]:
    return {"series": f"{name}{{{labels}}}", "values": values}


def requests(status: str, each_minute: int) -> dict[str, str]:
    return series(
        "ray_serve_num_http_requests_total", f'{A}, status_code="{status}"', f"0+{each_minute}x60"
    )


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


S = 'namespace="n", name="s"'


def job_status(status: str, *, pod: str = "1") -> dict[str, str]:
    """Return the status of the RayJob `r`, as one pod of the operator reports it."""
    labels = f'namespace="n", name="r", deployment_status="{status}", pod="{pod}"'
    return series("kuberay_job_deployment_status", labels, "1x60")


def cron_job(name: str, *, created: int) -> dict[str, str]:
    """Return the series of a CronJob, created at this Unix time."""
    return series("kube_cronjob_created", f'namespace="n", cronjob="{name}"', f"{created}x60")


def suspended(name: str, values: str) -> dict[str, str]:
    """Return the series that is 1 while a CronJob is suspended."""
    return series("kube_cronjob_spec_suspend", f'namespace="n", cronjob="{name}"', values)


def scheduled(name: str, *, at: int) -> dict[str, str]:
    """Return the Unix time at which a CronJob last started a Job."""
    labels = f'namespace="n", cronjob="{name}"'
    return series("kube_cronjob_status_last_schedule_time", labels, f"{at}x60")


def watch_job(
    reason: str, *, created: int, name: str = "watch-t-1", failed: bool = True
) -> list[dict[str, str]]:
    """Return the series of a Job with a failed pod, created at this Unix time."""
    labels = f'namespace="n", job_name="{name}"'
    return [
        series("kube_job_failed", f'{labels}, condition="true"', f"{int(failed)}x60"),
        series("kube_job_status_failed", f'{labels}, reason="{reason}"', "1x60"),
        series("kube_job_created", labels, f"{created}x60"),
    ]


LABELS_OF_A = {"namespace": "n", "application": "a"}
# An alert, series that fire it, minutes until it fires, its labels and summary, and series that
# must not fire it.
CASES: list[tuple[str, list[dict[str, str]], int, dict[str, str], str, list[dict[str, str]]]] = [
    (
        "TailorbirdUnavailable",
        [series("probe_success", 'job="tailorbird-readyz", instance="u"', "0x60")],
        1,
        {"job": "tailorbird-readyz", "instance": "u"},
        "u does not answer with 200",
        [
            series("probe_success", 'job="tailorbird-readyz"', "1x60"),
            series("probe_success", 'job="other"', "0x60"),
        ],
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
        [
            series("ray_tailorbird_version_refused", f'{A}, replica="{replica}"', f"{replica}x60")
            for replica in (0, 1)
        ],
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
            series(
                "ray_tailorbird_endpoint_requests_total",
                f'{A}, version="v", outcome="{outcome}"',
                f"0+{number}x60",
            )
            for outcome, number in (("ok", 80), ("endpoint_busy", 15), ("endpoint_timeout", 5))
        ],
        6,
        LABELS_OF_A | {"version": "v"},
        "20% of the requests of v (a) to its endpoint fail",
        [
            series(
                "ray_tailorbird_endpoint_requests_total",
                f'{A}, version="v", outcome="{outcome}"',
                f"0+{number}x60",
            )
            for outcome, number in (("ok", 50), ("cancelled", 45), ("endpoint_busy", 5))
        ],
    ),
    (
        "TailorbirdFallbacks",
        [
            series(
                "ray_tailorbird_hybrid_answers_total",
                f'{A}, version="v", fallback="{fallback}"',
                f"0+{number}x60",
            )
            for fallback, number in (("no", 98), ("yes", 2))
        ],
        6,
        LABELS_OF_A | {"version": "v"},
        "2% of the answers of v (a) are not of the part that should answer",
        [
            series(
                "ray_tailorbird_hybrid_answers_total",
                f'{A}, version="v", fallback="no"',
                "0+100x60",
            )
        ],
    ),
    (
        "TailorbirdApiKeys",
        [
            series("ray_tailorbird_api_key_errors", f'{A}, replica="{replica}"', f"{replica}x60")
            for replica in (0, 1)
        ],
        5,
        LABELS_OF_A,
        "1 lines of the API keys of a cannot be read",
        [series("ray_tailorbird_api_key_errors", A, "0x60")],
    ),
    (
        "TailorbirdMemory",
        node(95),
        2,
        {"namespace": "n", "ip": "1"},
        "1 uses 95% of its memory; at 95% Ray kills processes",
        node(89),
    ),
    (
        "TailorbirdRunFailed",
        [job_status("Failed"), job_status("Failed", pod="2")],  # of two operators
        0,
        {"namespace": "n", "name": "r"},
        "the RayJob r failed and is not retried",
        [job_status(status) for status in ("Running", "Retrying", "Complete")],
    ),
    (
        "TailorbirdServiceNotReady",
        [series("kuberay_service_condition_ready", f'{S}, condition="false"', "1x60")],
        15,
        {"namespace": "n", "name": "s"},
        "the RayService s is not ready",
        [
            series("kuberay_service_condition_ready", f'{S}, condition="{ready}"', "1x60")
            for ready in ("true", "false")
        ],
    ),
    (
        "TailorbirdWatchFailed",
        watch_job("BackoffLimitExceeded", created=0),
        0,
        {"namespace": "n", "job_name": "watch-t-1"},
        "the Job watch-t-1 failed, so there is no report of the day",
        # A recommendation (exit code 3), a Job of another kind, and one that failed the day before.
        [
            *watch_job("", created=0),
            *watch_job("BackoffLimitExceeded", created=0, name="backup-1"),
            *watch_job("BackoffLimitExceeded", created=-86400, name="watch-t-0"),
        ],
    ),
    (
        "TailorbirdNoReport",
        [
            scheduled("watch-t", at=-36 * 3600),
            cron_job("watch-t", created=-90 * 3600),
            suspended("watch-t", "0x60"),
        ],
        1,
        {"namespace": "n", "cronjob": "watch-t"},
        "the last Job of the CronJob watch-t started 1d 12h 2m 0s ago",
        [
            scheduled("watch-m", at=0),
            cron_job("watch-m", created=-36 * 3600),
            # One that is suspended, one that resumed, a CronJob of another kind, and a new one.
            scheduled("watch-t", at=-36 * 3600),
            suspended("watch-t", "1x60"),
            scheduled("watch-v", at=-36 * 3600),
            suspended("watch-v", "1x5 0x60"),
            scheduled("backup", at=-36 * 3600),
            cron_job("watch-u", created=0),
        ],
    ),
    (
        "TailorbirdNoReport",  # a CronJob that never started a Job
        [cron_job("watch-t", created=-36 * 3600)],
        1,
        {"namespace": "n", "cronjob": "watch-t"},
        "the last Job of the CronJob watch-t started 1d 12h 2m 0s ago",
        [cron_job("watch-t", created=0)],
    ),
    (
        "TailorbirdVerdictDue",
        watch_job("", created=0),
        0,
        {"namespace": "n", "job_name": "watch-t-1"},
        "the Job watch-t-1 recommends a re-evaluation",
        # One that failed, one that is retried, a Job of another kind, and one of the day before.
        [
            *watch_job("BackoffLimitExceeded", created=0),
            *watch_job("", created=0, name="watch-t-2", failed=False),
            *watch_job("", created=0, name="backup-1"),
            *watch_job("", created=-86400, name="watch-t-0"),
        ],
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
        evaluated = [silent, fires] if minutes else [fires]  # an alert without `for` fires at once
        tests.append({"interval": "1m", "input_series": firing, "alert_rule_test": evaluated})
        tests.append(
            {
                "interval": "1m",
                "input_series": quiet,
                "alert_rule_test": [{"eval_time": "40m", "alertname": name, "exp_alerts": []}],
            }
        )
    (promtool / "tests.yaml").write_text(
        yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": tests})
    )
    run_promtool(promtool, "test", "rules", "tests.yaml")


def test_the_documented_example_of_an_alert_on_the_spend_fires_above_its_limit(
    promtool: Path,
) -> None:
    (example,) = re.findall(
        r"```yaml\n(- alert:.*?)```", queries.OPERATIONS.read_text(), flags=re.DOTALL
    )
    (rule,) = yaml.safe_load(example)
    (promtool / "spend.yaml").write_text(
        yaml.safe_dump({"groups": [{"name": "spend", "rules": [rule]}]})
    )
    assert set(queries.NAME.findall(rule["expr"])) == {f"ray_{ENDPOINT_SPEND.name}"}
    tests = []
    for each_hour, exp_alerts in ((2, True), (0.5, False)):  # 48 and 12 a day
        spend = [
            series(
                f"ray_{ENDPOINT_SPEND.name}", f'{A}, version="{version}"', f"0+{each_hour / 2}x48"
            )
            for version in ("v", "w")
        ]
        annotations = {"alarm": "spend", "summary": "the endpoint of a cost 48 within a day"}
        alert = {"exp_labels": LABELS_OF_A | rule["labels"], "exp_annotations": annotations}
        fires = {
            "eval_time": "30h",
            "alertname": rule["alert"],
            "exp_alerts": [alert] if exp_alerts else [],
        }
        tests.append({"interval": "1h", "input_series": spend, "alert_rule_test": [fires]})
    (promtool / "spend-tests.yaml").write_text(
        yaml.safe_dump({"rule_files": ["spend.yaml"], "tests": tests})
    )
    run_promtool(promtool, "test", "rules", "spend-tests.yaml")
