"""The audit of installed packages, with the real pip-audit and a fake advisory service on loopback."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests import audit

ADVISORY = {
    "id": "GHSA-xxxx",
    "aliases": ["CVE-2026-0001"],
    "summary": "of the test",
    "affected": [
        {
            "package": {"name": "leaky", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.0"}]}],
        }
    ],
}


class Advisories(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        response = {"vulns": [ADVISORY]} if request["package"]["name"] == "leaky" else {}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(response).encode())

    def log_message(self, *_: object) -> None:
        """Do not log."""


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Advisories)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("PIP_AUDIT_VULNERABILITY_SERVICE", "osv")
    monkeypatch.setenv("PIP_AUDIT_OSV_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(audit, "installed", lambda: {"requests": "requests==2.0", "leaky": "leaky==1.0"})
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("service")
def test_a_known_vulnerability_fails_the_check_and_names_the_fixed_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.main() == 1
    assert capsys.readouterr().out.splitlines() == [
        "leaky 1.0: CVE-2026-0001, fixed in 2.0; raise the range in pyproject.toml",
        "advisories queried for 2 of 2 installed packages",
    ]


def test_an_ignored_advisory_passes_and_its_reason_is_printed() -> None:
    advisory = {"id": "CVE-2026-0001", "aliases": ["GHSA-xxxx"], "fix_versions": []}
    packages = [{"name": "leaky", "version": "1.0", "vulns": [advisory]}]
    lines, failed = audit.assess(packages, ignored={"GHSA-xxxx": "we never call it"})
    assert (lines[0], failed) == ("leaky 1.0: CVE-2026-0001, ignored: we never call it", False)
    lines, failed = audit.assess(packages, ignored={"GHSA-yyyy": "another"})
    assert (lines[0].split(";")[0], failed) == ("leaky 1.0: CVE-2026-0001, fixed in no version yet", True)


@pytest.mark.usefixtures("service")
def test_an_unreachable_service_passes_with_a_note(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_AUDIT_OSV_URL", "http://127.0.0.1:9")
    assert audit.main() == 0
    assert "their service cannot be reached" in capsys.readouterr().out


def test_unknown_packages_are_listed_and_local_version_labels_are_not_sent() -> None:
    packages: list[audit.Found] = [
        {"name": "a", "version": "1", "vulns": []},
        {"name": "b", "skip_reason": "not found"},
    ]
    assert audit.assess(packages, ignored={}) == (
        ["advisories queried for 1 of 2 installed packages; unknown to the service: b"],
        False,
    )
    pins = audit.installed()
    assert pins["requests"].startswith("requests==")
    assert "tailorbird" not in pins
    assert not [pin for pin in pins.values() if "+" in pin]
