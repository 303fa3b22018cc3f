"""Certificates for the wire tests, made with python-cryptography and signed by the lab's own authority, so that each
one differs from a good SVID in exactly one respect."""

import datetime
import glob
import os

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

HOUR = datetime.timedelta(hours=1)


def now():
    return datetime.datetime.utcnow().replace(microsecond=0)


class Credential:
    """A certificate chain and its key as PEM files, as Python's ssl and Envoy want them."""

    def __init__(self, folder, name, chain, key):
        self.chain_file, self.key_file = f"{folder}/{name}.crt", f"{folder}/{name}.key"
        with open(self.chain_file, "wb") as out:
            out.write(b"".join(one.public_bytes(serialization.Encoding.PEM) for one in chain))
        with open(self.key_file, "wb") as out:
            out.write(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                        serialization.NoEncryption()))


class Authority:
    """A root that signs SVIDs: the lab's, read from the controller's state folder, or one of a stranger."""

    def __init__(self, certificate, key, folder):
        self.certificate, self.key, self.folder = certificate, key, folder
        os.makedirs(folder, exist_ok=True)
        self.root_file = f"{folder}/root.pem"
        with open(self.root_file, "wb") as out:
            out.write(certificate.public_bytes(serialization.Encoding.PEM))
        self._count = 0

    @classmethod
    def of_lab(cls, lab):
        """The certificate and key that the lab's controller wrote into its state folder."""
        certificate = key = None
        for path in sorted(glob.glob(f"{lab.ca_state}/**", recursive=True)):
            if not os.path.isfile(path):
                continue
            with open(path, "rb") as source:
                content = source.read()
            if b"PRIVATE KEY" in content:
                start = content.index(b"-----BEGIN", max(0, content.index(b"PRIVATE KEY") - 20))
                key = serialization.load_pem_private_key(content[start:], None)
            if b"BEGIN CERTIFICATE" in content and certificate is None:
                certificate = x509.load_pem_x509_certificate(content[content.index(b"-----BEGIN CERTIFICATE"):])
        if certificate is None or key is None:
            raise RuntimeError(f"no root in {lab.ca_state}: {os.listdir(lab.ca_state)}")
        return cls(certificate, key, f"{lab.dir}/certificates")

    @classmethod
    def stranger(cls, folder, name="stranger"):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, name)])
        certificate = (x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
                       .serial_number(x509.random_serial_number()).not_valid_before(now() - HOUR)
                       .not_valid_after(now() + 24 * HOUR)
                       .add_extension(x509.BasicConstraints(True, None), True)
                       .add_extension(_usage(signs=True), True).sign(key, hashes.SHA256()))
        return cls(certificate, key, f"{folder}/{name}")

    def issue(self, *names, start=-HOUR, end=HOUR, bits=None, usages=None, dns=()):
        """A leaf with these URI names; start and end count from now; bits: an RSA key of that size instead of P-256."""
        key = rsa.generate_private_key(65537, bits) if bits else ec.generate_private_key(ec.SECP256R1())
        if usages is None:
            usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = (x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(self.certificate.subject)
                   .public_key(key.public_key()).serial_number(x509.random_serial_number())
                   .not_valid_before(now() + start).not_valid_after(now() + end)
                   .add_extension(x509.BasicConstraints(False, None), True).add_extension(_usage(), True))
        if usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), False)
        if names or dns:
            alternatives = [x509.UniformResourceIdentifier(name) for name in names]
            alternatives += [x509.DNSName(name) for name in dns]
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), True)
        try:
            identifier = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
            builder = builder.add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), False)
        except x509.ExtensionNotFound:
            pass
        self._count += 1
        return Credential(self.folder, f"leaf-{self._count}", [builder.sign(self.key, hashes.SHA256())], key)


def _usage(signs=False):
    return x509.KeyUsage(digital_signature=True, content_commitment=False, key_encipherment=not signs,
                         data_encipherment=False, key_agreement=False, key_cert_sign=signs, crl_sign=signs,
                         encipher_only=False, decipher_only=False)


def uris(der):
    """The URI names of a certificate in DER."""
    names = x509.load_der_x509_certificate(der).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.UniformResourceIdentifier)


