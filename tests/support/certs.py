"""Certificates for wire tests: an authority, and leaves with any names, times, key and flaws.

    ca = Authority()
    files = ca.issue(directory, "web", uris=["spiffe://cluster.local/ns/default/sa/web"])
    context.load_cert_chain(files.chain, files.key)

Uses python3-cryptography; private keys are written 0600.
"""

import datetime
import os
import pathlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID



def spiffe(namespace, service_account, trust_domain="cluster.local"):
    return f"spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}"


def make_key(kind="p256"):
    if kind == "p256":
        return ec.generate_private_key(ec.SECP256R1())
    if kind == "p384":
        return ec.generate_private_key(ec.SECP384R1())
    if kind.startswith("rsa"):
        return rsa.generate_private_key(public_exponent=65537, key_size=int(kind[3:]))
    raise ValueError(f"unknown kind of key: {kind}")


def to_pem(key):
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


@dataclass(frozen=True)
class Files:
    key: str
    chain: str
    root: str


class Authority:
    def __init__(self, name="test root", key_pem=None, cert_pem=None):
        """A new root, or an existing one, for example the two blocks of a controller's ca.pem."""
        if key_pem is not None:
            self.key = serialization.load_pem_private_key(key_pem, None)
            self.certificate = x509.load_pem_x509_certificate(cert_pem)
            return
        self.key = make_key()
        subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, name)])
        now = datetime.datetime.utcnow()
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=3650))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )

    @classmethod
    def from_state_dir(cls, directory):
        """The authority of a standalone controller, to forge what it would never sign."""
        pem = pathlib.Path(directory, "ca.pem").read_bytes()
        return cls(key_pem=pem, cert_pem=pem[pem.index(b"-----BEGIN CERTIFICATE") :])

    @property
    def root_pem(self):
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, directory, name, uris=(), dns=(), key="p256", starts=datetime.timedelta(minutes=-2),
              ends=datetime.timedelta(hours=1), server=True, client=True):
        """Writes NAME.key, NAME.pem (the leaf) and root.pem into `directory`. `starts` and `ends` count from now."""
        private = make_key(key)
        now = datetime.datetime.utcnow()
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.certificate.subject)
            .public_key(private.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + starts)
            .not_valid_after(now + ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        )
        names = [x509.UniformResourceIdentifier(uri) for uri in uris] + [x509.DNSName(text) for text in dns]
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
        usages = [ExtendedKeyUsageOID.SERVER_AUTH] * server + [ExtendedKeyUsageOID.CLIENT_AUTH] * client
        if usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        leaf = builder.sign(self.key, hashes.SHA256())

        directory = pathlib.Path(directory)
        files = Files(str(directory / f"{name}.key"), str(directory / f"{name}.pem"), str(directory / "root.pem"))
        descriptor = os.open(files.key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            out.write(to_pem(private))
        pathlib.Path(files.chain).write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
        pathlib.Path(files.root).write_bytes(self.root_pem)
        return files
