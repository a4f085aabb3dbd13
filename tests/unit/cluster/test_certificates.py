"""HTTPS requests to a dashboard whose certificate a private authority has signed."""

import datetime
import inspect
import ipaddress
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cluster.auth import SessionError
from cluster.certificates import VARIABLES, verify
from cluster.dashboard import request_dashboard
from tests.unit.cluster.dashboard import running_dashboard


@dataclass(frozen=True)
class Issued:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def write(self, path: Path) -> str:
        """Write the certificate and the key to a PEM file."""
        key = self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        path.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM) + key)
        return str(path)


def issue(name: str, *, issuer: Issued | None = None) -> Issued:
    """Return a certificate for 127.0.0.1, or that of an authority without an issuer.

    It has all extensions of RFC 5280, which Python 3.13 requires by default.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    signer = issuer.key if issuer else key
    usage = dict.fromkeys(inspect.signature(x509.KeyUsage).parameters, False)
    usage |= {
        "digital_signature": True,
        "key_cert_sign": issuer is None,
        "crl_sign": issuer is None,
    }
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    return Issued(builder.sign(signer, hashes.SHA256()), key)


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Start a dashboard with TLS; yield the file of its authority, which no variable names."""
    ours = issue("our authority")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(issue("dashboard", issuer=ours).write(tmp_path / "server.pem"))
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with running_dashboard(tls=context) as address:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)
        yield ours.write(tmp_path / "authority.pem")


@pytest.mark.parametrize("variable", VARIABLES)
def test_one_variable_is_enough(
    variable: str, authority: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, authority)
    assert request_dashboard("GET", "/api/version").status_code == 200


@pytest.mark.usefixtures("authority")
def test_a_certificate_of_an_unknown_authority_is_refused_with_the_variable_to_set() -> None:
    with pytest.raises(SessionError, match="is not trusted; set SSL_CERT_FILE"):
        request_dashboard("GET", "/api/version")


def test_a_file_that_does_not_exist_is_an_error_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/no/such/file.pem")
    with pytest.raises(
        ValueError, match=r"SSL_CERT_FILE is /no/such/file.pem, which does not exist"
    ):
        verify()
