"""Certificates for one run of a cluster: an authority of its own and what it signs, valid for a day."""

import base64
import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

HOSTS = ("localhost", "127.0.0.1", "kubernetes", "kubernetes.default", "kubernetes.default.svc")


class Authority:
    """A certificate authority; it writes `<name>.crt` and `<name>.key` into its directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        own = x509.BasicConstraints(ca=True, path_length=None)
        certificate = self._unsigned(self.name, self.key.public_key()).add_extension(own, critical=True)
        self.certificate = directory / "ca.crt"
        self._write("ca", self.key, certificate)

    @property
    def bundle(self) -> str:
        """The authority's certificate in base64, as webhook and client configurations want it."""
        return base64.b64encode(self.certificate.read_bytes()).decode()

    def issue(self, name: str, user: str = "server", group: str = "test") -> tuple[Path, Path]:
        """Certificate and key, for a server on loopback as well as for the client `user` of `group`."""
        subject = x509.Name(
            [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group), x509.NameAttribute(NameOID.COMMON_NAME, user)]
        )
        names = [x509.IPAddress(ipaddress.ip_address(h)) if h[0].isdigit() else x509.DNSName(h) for h in HOSTS]
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            self._unsigned(subject, key.public_key())
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(usage, critical=False)
        )
        return self._write(name, key, certificate)

    def _unsigned(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder(issuer_name=self.name, subject_name=subject, public_key=key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
        )

    def _write(
        self, name: str, key: ec.EllipticCurvePrivateKey, certificate: x509.CertificateBuilder
    ) -> tuple[Path, Path]:
        signed = certificate.sign(self.key, hashes.SHA256())
        paths = self.directory / f"{name}.crt", self.directory / f"{name}.key"
        paths[0].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        plain = serialization.NoEncryption()
        paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
        return paths
