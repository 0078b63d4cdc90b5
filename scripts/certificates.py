"""Certificates that nobody vouches for: for a trial, or until a real one is there."""

import datetime
import socket
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from scripts.sealing_keys import write_private

_DAYS = 30
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - nothing is listened on here


def self_signed(names: Iterable[str] = ()) -> tuple[bytes, bytes]:
    """A certificate for this machine and its key, PEM; valid for 30 days.

    Args:
        names: further names or addresses that it is for.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Mayfly, self-signed")])
    now = datetime.datetime.now(datetime.UTC)
    hosts = dict.fromkeys(("localhost", "127.0.0.1", "::1", socket.gethostname(), *names))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # for clocks that go behind
        .not_valid_after(now + datetime.timedelta(days=_DAYS))
        .add_extension(
            x509.SubjectAlternativeName([_name(h) for h in hosts if h not in _EVERYWHERE]), False
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
        .sign(key, SHA256())
    )
    return (
        certificate.public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


def create(folder: Path, names: Iterable[str]) -> None:
    """`mayfly keys tls`: write a pair for `names`."""
    private, public = folder / "key.pem", folder / "cert.pem"
    certificate, key = self_signed(names)
    write_private(private, key, "it may be a real one")
    public.write_bytes(certificate)
    print(f"{public}  certificate, for {_DAYS} days: MAYFLY_TLS_CERT, and `curl --cacert`")
    print(f"{private}  its private key: MAYFLY_TLS_KEY")
    print(f"SHA-256 {fingerprint(certificate)}")


def fingerprint(certificate: bytes) -> str:
    """SHA-256 of a PEM certificate, as browsers and openssl show it."""
    digest = x509.load_pem_x509_certificate(certificate).fingerprint(SHA256()).hex(":")
    return digest.upper()


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)
