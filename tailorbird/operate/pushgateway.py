"""Push the gauges of `watch` to a Pushgateway, from which Prometheus reads them after the process
has ended."""

import re
from urllib.parse import quote

import requests

from cluster.certificates import verify
from tailorbird.monitoring.request_log import MonitoringError

JOB = "tailorbird-watch"
TIMEOUT_S = 10


def push_metrics(metrics: str, *, to: str, model: str) -> None:
    """Replace the gauges of the model at the Pushgateway `to`. The gauges are in Prometheus' text
    format.

    `to` can contain a user name and a password. Raises MonitoringError, which does not contain
    them, if the Pushgateway does not accept the gauges.
    """
    url = f"{to.rstrip('/')}/metrics/job/{JOB}/model/{quote(model, safe='')}"
    try:
        answer = requests.put(url, data=metrics.encode(), timeout=TIMEOUT_S, verify=verify())
    except (requests.RequestException, ValueError) as error:
        reason = type(error).__name__
    else:
        if answer.ok:
            return
        reason = f"{answer.status_code}: {answer.text[:500].strip()}"
    address = re.sub(r"//[^/]*@", "//", to)
    raise MonitoringError(
        f"the Pushgateway at {address} does not accept the metrics ({reason}); the report is "
        "stored. Check the address, and that the Pushgateway runs, then repeat the command"
    )
