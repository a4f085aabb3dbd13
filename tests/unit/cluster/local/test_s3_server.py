"""Attacks on each port of the real S3 server by clients without its credentials: they can read and
change nothing."""

import json
import os
import socket
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import psutil
import pytest
import requests

from cluster.local import ports, processes, s3_server
from cluster.local.stack import StackError
from tailorbird import storage
from tests.browser import OpenPage

SECRET = b"a row that only the owner reads"
OBJECT = "s3://lake/private/row"
ATTACKERS_KEY, ATTACKERS_SECRET = "attackerskey", "attackerssecret"
NOBODY = 65534
INTERNAL = {ports.MASTER, ports.VOLUME, ports.FILER, ports.ADMIN}
GRPC = {ports.GRPC_SHIFT + offset for offset in (ports.S3, *INTERNAL)}

HTTP_ATTACKS = (
    "GET /buckets/lake/private/row",
    "GET /lake/private/row",
    "GET /?pretty=y",
    "GET /lake",
    "GET /buckets/",
    "GET /dir/status",
    "GET /dir/assign?collection=lake",
    "GET /cluster/status",
    "GET /ui/index.html",
    "GET /api/users",
    "GET /debug/pprof/",
    "GET /metrics",
    "PUT /buckets/lake/private/row",
    "PUT /lake/private/row",
    "POST /buckets/lake/private/row",
    "POST /lake?uploads",
    "POST /submit",
    "POST /?Action=CreateAccessKey&UserName=attacker",
    "DELETE /buckets/lake/private/row",
    "DELETE /lake/private/row",
    "DELETE /models",
    "DELETE /buckets/models?recursive=true",
    "GET /col/delete?collection=lake",
)
SHELL_ATTACKS = (
    "fs.cat /buckets/lake/private/row",
    f"s3.configure -user=attacker -access_key={ATTACKERS_KEY} -secret_key={ATTACKERS_SECRET} "
    "-actions=Admin -apply",
    "lock",
    "collection.delete -collection=lake -force",
    "s3.bucket.delete -name=models",
    "unlock",
)
GRPC_ATTACKS = (
    "/filer_pb.SeaweedFiler/GetFilerConfiguration",
    "/iam_pb.SeaweedIdentityAccessManagement/ListUsers",
    "/master_pb.Seaweed/GetMasterConfiguration",
    "/s3_pb.SeaweedS3/Configure",
    "/volume_server_pb.VolumeServer/VolumeServerStatus",
    "/worker_pb.WorkerService/WorkerStream",
)
PAGE_PATHS = (
    "/buckets/lake/private/row",
    "/lake/private/row",
    "/dir/assign?collection=lake",
    "/col/delete?collection=lake",
)
PAGE = """<title>attack</title><body></body><script>
async function attack(url, method, mode) {
  try {
    const answer = await fetch(url, {method, mode, body: method === "GET" ? undefined : "overwritten"});
    if (answer.ok) document.body.append(`read or changed: ${method} ${url} `);
  } catch (error) {}
}
(async () => {
  for (const url of URLS)
    for (const method of ["GET", "PUT", "POST", "DELETE"])
      for (const mode of ["cors", "no-cors"]) await attack(url, method, mode);
  document.body.append("finish" + "ed");
})();
</script>"""


@dataclass(frozen=True)
class Server:
    """A running S3 server."""

    base: int
    pid: int
    folder: Path
    temp_dir: Path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The S3 server as the stack starts it."""
    yield from _running(tmp_path_factory.mktemp("protected"))


@pytest.fixture
def unprotected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The S3 server without the file that protects its internal ports."""
    monkeypatch.setattr(s3_server, "_write_security", lambda _: None)
    yield from _running(tmp_path)


def _running(folder: Path) -> Iterator[Server]:
    base, claim = ports.claim_ports()
    variables = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{base + ports.S3}",
        "AWS_ACCESS_KEY_ID": "owner",
        "AWS_SECRET_ACCESS_KEY": "ownerssecret",
        "AWS_REGION": "us-east-1",
    }
    with (
        pytest.MonkeyPatch.context() as patched,
        tempfile.TemporaryDirectory(prefix="tb-", dir="/tmp") as temp_dir,
        claim,
    ):
        for name, value in variables.items():
            patched.setenv(name, value)
        process = s3_server.start_s3(folder, base=base, temp_dir=Path(temp_dir))
        try:
            while not s3_server.s3_answers(base, pid=process.pid):
                assert process.poll() is None
                threading.Event().wait(0.05)
            storage.write_bytes(OBJECT, SECRET)
            yield Server(base, process.pid, folder, Path(temp_dir))
        finally:
            process.terminate()
            process.wait()


def http_attacks_that_succeed(server: Server) -> list[str]:
    """Send each request to each port, and return those that were answered with success or the
    object."""
    succeeded = []
    for port in ports.listening(server.pid):
        for method, path in map(str.split, HTTP_ATTACKS):
            url = f"http://127.0.0.1:{port}{path}"
            with suppress(requests.RequestException):
                answer = requests.request(method, url, data=b"overwritten", timeout=10)
                if answer.ok or SECRET in answer.content:
                    succeeded.append(f"{method} {url}")
    return succeeded


def grpc_codes(port: int) -> dict[str, grpc.StatusCode]:
    """Return how a port answers each call, in plain text and by TLS without a client
    certificate."""
    target = f"127.0.0.1:{port}"
    channels = [grpc.insecure_channel(target)]
    with suppress(ssl.SSLError):
        certificate = ssl.get_server_certificate(("127.0.0.1", port), timeout=10)
        channels.append(
            grpc.secure_channel(target, grpc.ssl_channel_credentials(certificate.encode()))
        )
    codes = {}
    for number, channel in enumerate(channels):
        with channel:
            for method in GRPC_ATTACKS:
                try:
                    channel.unary_unary(method)(b"", timeout=10)
                    codes[f"{number} {method}"] = grpc.StatusCode.OK
                except grpc.RpcError as error:
                    codes[f"{number} {method}"] = error.code()
    return codes


def attack_with_the_shell(server: Server, folder: Path, *, timeout_s: int) -> bytes:
    """Run SeaweedFS's own administration shell, which keeps trying if it is refused; return what it
    prints."""
    addresses = (
        f"-master=127.0.0.1:{server.base + ports.MASTER}",
        f"-filer=127.0.0.1:{server.base + ports.FILER}",
    )
    output = folder / "output"
    with output.open("wb") as printed, suppress(subprocess.TimeoutExpired):
        subprocess.run(
            [processes.program("weed"), "shell", *addresses],
            input="\n".join(SHELL_ATTACKS),
            text=True,
            cwd=folder,
            env={"HOME": str(folder)},
            timeout=timeout_s,
            stdout=printed,
            stderr=printed,
            check=False,
        )
    return output.read_bytes()


def harm() -> list[str]:
    """Return what has changed on the server: the object, the buckets, the keys."""
    changes = [] if _exists("s3://models") else ["a bucket is gone"]
    try:
        if storage.read_bytes(OBJECT) != SECRET:
            changes.append("the object has changed")
    except storage.StorageError:
        changes.append("the object cannot be read")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("AWS_ACCESS_KEY_ID", ATTACKERS_KEY)
        patched.setenv("AWS_SECRET_ACCESS_KEY", ATTACKERS_SECRET)
        if _exists(OBJECT) or _lists("s3://models"):
            changes.append("the attacker has a key")
    return changes


def _lists(uri: str) -> bool:
    try:
        storage.list_files(uri, missing_ok=True)
    except storage.StorageError:
        return False
    return True


def _exists(uri: str) -> bool:
    try:
        return storage.exists(uri)
    except storage.StorageError:
        return False


def test_the_server_listens_on_its_known_ports_on_loopback_only(server: Server) -> None:
    connections = psutil.Process(server.pid).net_connections("tcp")
    addresses = {
        item.laddr.ip for item in connections if item.laddr and item.status == psutil.CONN_LISTEN
    }
    assert addresses == {"127.0.0.1"}
    assert {port - server.base for port in ports.listening(server.pid)} == {
        ports.S3,
        *INTERNAL,
        *GRPC,
    }


def test_requests_without_credentials_are_refused_on_each_port(server: Server) -> None:
    assert http_attacks_that_succeed(server) == []
    assert harm() == []


def test_the_internal_ports_demand_a_certificate_that_the_server_has_signed(
    server: Server, tmp_path: Path
) -> None:
    s3_server.require_closed(server.base, pid=server.pid)
    (tmp_path / "own.pem").write_text("".join(s3_server._new_certificate()))
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(tmp_path / "own.pem")
    for port in ports.listening(server.pid) - {server.base + ports.S3}:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
            pytest.raises(ssl.SSLError, match=r"UNKNOWN_CA|BAD_CERTIFICATE"),
            context.wrap_socket(plain) as connection,
        ):
            connection.recv(1)


def test_no_port_answers_a_call_by_grpc_without_a_certificate(server: Server) -> None:
    codes = {
        (port, call): code
        for port in ports.listening(server.pid)
        for call, code in grpc_codes(port).items()
    }
    assert {
        call for call, code in codes.items() if code is not grpc.StatusCode.UNAVAILABLE
    } == set()


@pytest.mark.long
def test_the_administration_shell_reads_and_changes_nothing(server: Server, tmp_path: Path) -> None:
    assert SECRET not in attack_with_the_shell(server, tmp_path, timeout_s=4)
    assert harm() == []


def test_a_page_of_another_origin_reads_and_changes_nothing(
    open_page: OpenPage, server: Server, tmp_path: Path
) -> None:
    urls = [
        f"http://127.0.0.1:{port}{path}"
        for port in ports.listening(server.pid)
        for path in PAGE_PATHS
    ]
    (tmp_path / "index.html").write_text(PAGE.replace("URLS", json.dumps(urls)))
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        page = open_page(f"http://127.0.0.1:{site.server_port}/index.html", other_origins=True)
        page.get_by_text("finished").wait_for()
        site.shutdown()
    assert "read or changed" not in page.locator("body").inner_text()
    assert harm() == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can act as another user")
def test_another_user_can_read_no_file_and_use_no_socket(server: Server) -> None:
    sockets = {
        str(item.laddr) for item in psutil.Process(server.pid).net_connections("unix") if item.laddr
    }
    files = [*server.temp_dir.rglob("*"), *server.folder.rglob("*"), *sockets]
    assert len(sockets) == 7
    script = (
        'for path in "$@"; do if test -r "$path" || test -w "$path"; then echo "$path"; fi; done'
    )
    command = ["sh", "-c", script, "sh", *map(str, files)]
    done = subprocess.run(
        command,
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == ""


def test_files_and_folders_are_private(server: Server) -> None:
    entries = [
        *server.temp_dir.rglob("*"),
        *(server.folder / "s3").rglob("*"),
        server.folder / "s3",
    ]
    public = [
        path.suffix for path in entries if not path.is_symlink() and path.stat().st_mode & 0o077
    ]
    assert set(public) <= {".vif"}  # SeaweedFS sets the mode of these files; they describe volumes


@pytest.mark.long
def test_without_the_security_file_the_same_attacks_succeed(
    unprotected: Server, tmp_path: Path
) -> None:
    codes = [
        code for port in ports.listening(unprotected.pid) for code in grpc_codes(port).values()
    ]
    with pytest.raises(StackError, match="accepts clients without a certificate on the ports"):
        s3_server.require_closed(unprotected.base, pid=unprotected.pid)
    assert codes.count(grpc.StatusCode.OK) > 3
    assert any(
        "/buckets/lake/private/row" in attack for attack in http_attacks_that_succeed(unprotected)
    )
    storage.write_bytes(OBJECT, SECRET)
    assert SECRET in attack_with_the_shell(unprotected, tmp_path, timeout_s=20)
    assert harm() == ["a bucket is gone", "the object cannot be read", "the attacker has a key"]
