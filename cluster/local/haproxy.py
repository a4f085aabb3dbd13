"""Settings of Ray Serve's HAProxy, written for Ray 2.60: retries, errors as JSON, and rules for all requests.

Ray's template copies the value of some variables into HAProxy's configuration, so further lines can follow a value.
"""

import json

# If a replica dies, retry its requests on another one; the fallback proxy would answer 500. HAProxy retries only
# requests that it has received completely, so it waits for bodies up to this timeout.
RETRY_ON = """conn-failure empty-response 500
    option http-buffer-request
    timeout http-request 20s"""

ERRORS = {
    405: ("wrong_method", "unknown method; use GET or POST"),
    408: ("body_too_slow", "the request did not arrive within 20 s"),
    502: ("replica_lost", "the replica failed before it answered"),
    503: ("not_available", "no replica is available; retry later"),
    504: ("timeout", "the replica did not answer in time"),
}
"""Types and messages of the errors that HAProxy sends itself, by status.

It answers bytes that are not HTTP with its own 400 or 408 page, which has no setting.
"""

METHODS = "GET HEAD POST PUT PATCH DELETE OPTIONS"
REPEATABLE = ("/v1/classify", "/v1/compare", "/v1/chat/completions", "/v1/completions")
"""POST routes whose requests HAProxy may repeat. Feedback and batches change what is stored."""

# Rules of all backends. Unknown methods are not logged, because Ray counts logged requests by method. Serve's fallback
# proxy answers 500 to some headers that are not UTF-8, and clients must not control Serve (`serving.http`).
RULES = rf"""
    acl known_method method {METHODS}
    http-request set-log-level silent if !known_method
    http-request deny deny_status 405 if !known_method
    http-request del-header ^(x-request-timeout-seconds|x-request-disconnect-disabled)$ -m reg
    http-request del-header ^(x[-_]session[-_]id|serve[-_]multiplexed[-_]model[-_]id)$ -m reg
    http-request del-header x-request-id if {{ req.fhdr(x-request-id) -m reg [^A-Za-z0-9._-]|.{{129}} }}
    http-request disable-l7-retry if !METH_GET !{{ path_end {" ".join(REPEATABLE)} }}"""


def _error(status: int) -> str:
    type, message = ERRORS[status]
    detail = {"message": message, "type": type, "param": None, "code": None}
    body = json.dumps({"error": detail}, separators=(",", ":")).replace('"', r"\"")
    headers = "hdr cache-control no-store hdr x-content-type-options nosniff"
    return f'\n    http-error status {status} content-type application/json string "{body}" {headers}'


HAPROXY_SETTINGS = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    # A replica that switches its version is ready again before HAProxy removes it.
    "RAY_SERVE_HAPROXY_BROADCAST_COALESCE_S": "1",
    "RAY_SERVE_HAPROXY_RETRY_ON": RETRY_ON,
    "RAY_SERVE_HAPROXY_RETRIES": "1",  # a request that kills replicas kills at most two
    # The last line of `defaults`, after Ray's own error files.
    "RAY_SERVE_HAPROXY_BALANCE_ALGORITHM": "leastconn" + "".join(map(_error, ERRORS)),
    # A part of the line `default-server ... inter 5s check` of each backend, which is divided in two lines.
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": f"5s{RULES}\n    default-server",
    # A dead proxy is restarted after three failed health checks. The default period is 10 s.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
}
