"""The audit of the locks, with the real pip-audit and a fake advisory service on loopback."""

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from locks import audit

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
HASH = f"--hash=sha256:{'0' * 64}"


class Advisories(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        response = {"vulns": [ADVISORY]} if request["package"]["name"] == "leaky" else {}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(response).encode())

    def log_message(self, *_: object) -> None:
        """Do not log."""


@pytest.fixture(autouse=True)
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "setup.txt").write_text(f"pip==26.0 {HASH}\n")
    (tmp_path / "all.txt").write_text(f"leaky==1.0 {HASH}\n")
    monkeypatch.setattr(audit, "FOLDER", tmp_path)
    monkeypatch.setattr(audit, "SETS", (("setup.txt",), ("all.txt",)))
    monkeypatch.setattr(sys, "argv", ["audit"])


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Advisories)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("PIP_AUDIT_VULNERABILITY_SERVICE", "osv")
    monkeypatch.setenv("PIP_AUDIT_OSV_URL", f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("service")
def test_a_known_vulnerability_of_a_locked_package_fails_the_check_and_names_the_fixed_version(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert audit.main() == 1
    assert capsys.readouterr().out.splitlines() == [
        "advisories read for 1 of 1 packages of setup.txt",
        "leaky 1.0 in all.txt: CVE-2026-0001, fixed in 2.0; raise the range in pyproject.toml if "
        "necessary, and run `make lock UPGRADE=1`",
        "advisories read for 1 of 1 packages of all.txt",
    ]


@pytest.mark.usefixtures("service")
def test_an_ignored_advisory_passes_and_its_reason_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit, "IGNORED", {"GHSA-xxxx": "we never call it"})
    monkeypatch.setattr(sys, "argv", ["audit", "--strict"])
    assert audit.main() == 0
    assert capsys.readouterr().out.startswith("GHSA-xxxx is ignored: we never call it\n")


@pytest.mark.parametrize(
    ("arguments", "status"), [([], 0), (["--strict"], 1)], ids=["check", "release"]
)
def test_unreadable_advisories_are_reported_and_fail_a_release(
    arguments: list[str],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PIP_AUDIT_VULNERABILITY_SERVICE", "osv")
    monkeypatch.setenv("PIP_AUDIT_OSV_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(sys, "argv", ["audit", *arguments])
    assert audit.main() == status
    output = capsys.readouterr().out
    assert output.endswith("cannot be read; the other locks were not queried\n")
    assert "Connection refused" in output.splitlines()[0]


@pytest.mark.usefixtures("service")
def test_each_version_for_another_python_or_platform_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pins = (
        "leaky==2.0 ; python_full_version >= '3.11'",
        "leaky==1.0 ; python_full_version < '3.11'",
        "other==1.0 ; sys_platform == 'win32'",
    )
    (tmp_path / "all.txt").write_text("".join(f"{pin} \\\n    {HASH}\n" for pin in pins))
    assert audit.main() == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line[:9] for line in lines[1:3]] == ["leaky 2.0", "leaky 1.0"]
    assert lines[3] == "advisories read for 3 of 3 packages of all.txt"


def test_the_error_of_pip_audit_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "setup.txt").write_text("pip 26.0\n")
    assert audit.query_advisories([tmp_path / "setup.txt"]) == []
    assert "invalid specifier at line 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "status"), [([], 0), (["--strict"], 1)], ids=["check", "release"]
)
def test_packages_that_the_service_does_not_know_are_listed_and_fail_a_release(
    arguments: list[str],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    packages: list[audit.Found] = [
        {"name": "a", "version": "1", "vulns": []},
        {"name": "b", "skip_reason": "not found"},
    ]
    monkeypatch.setattr(audit, "query_advisories", lambda _: packages)
    monkeypatch.setattr(sys, "argv", ["audit", *arguments])
    assert audit.main() == status
    assert (
        "advisories read for 1 of 2 packages of setup.txt; unknown to the service: b\n"
        in capsys.readouterr().out
    )
