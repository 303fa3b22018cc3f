"""The cluster's authority, certificates and kubeconfigs, written below <state>/pki."""

import datetime
import ipaddress
import json
import os

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

COMPONENTS = ("kube-controller-manager", "kube-scheduler", "kube-proxy")


def make(plan):
    """Writes everything that control plane and nodes need before they start."""
    pki = _Authority(f"{plan.state}/pki", plan.api)
    services = [plan.service(1, family) for family in plan.families]
    machine = [plan.machine(family) for family in plan.families]
    name = "kubernetes.default.svc.cluster.local"
    pki.certificate("apiserver", "kube-apiserver", addresses=["127.0.0.1", *machine, *services],
                    names=["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", name])
    pki.certificate("kubelet-client", "kube-apiserver-kubelet-client", "system:masters")
    pki.user("admin", "admin", "system:masters")
    for component in COMPONENTS:
        pki.user(component, f"system:{component}")
    for number in plan.numbers:
        pki.user(f"node{number}", f"system:node:node{number}", "system:nodes", names=[f"node{number}"],
                 addresses=[plan.node(number, family) for family in plan.families])


class _Authority:
    def __init__(self, folder, api):
        os.makedirs(folder, mode=0o700)
        self.folder, self.api = folder, api
        self.key = self._key("ca")
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cluster-ca")])
        usage = x509.KeyUsage(False, False, False, False, False, key_cert_sign=True, crl_sign=True, encipher_only=False,
                              decipher_only=False)
        self._write("ca", self._builder(self.name, self.key).add_extension(x509.BasicConstraints(True, None), True)
                    .add_extension(usage, True).sign(self.key, hashes.SHA256()))
        tokens = self._key("sa")
        with open(f"{folder}/sa.pub", "wb") as out:
            out.write(tokens.public_key().public_bytes(serialization.Encoding.PEM,
                                                       serialization.PublicFormat.SubjectPublicKeyInfo))

    def _key(self, file):
        key = ec.generate_private_key(ec.SECP256R1())
        with open(f"{self.folder}/{file}.key", "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as out:
            # kube-apiserver and openssl both read the traditional form; PKCS #8 is refused for the controller's key.
            out.write(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL,
                                        serialization.NoEncryption()))
        return key

    def _builder(self, subject, key):
        start = datetime.datetime.utcnow() - datetime.timedelta(minutes=5)
        return (x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(key.public_key())
                .serial_number(x509.random_serial_number()).not_valid_before(start)
                .not_valid_after(start + datetime.timedelta(days=3650)))

    def _write(self, file, certificate):
        with open(f"{self.folder}/{file}.crt", "wb") as out:
            out.write(certificate.public_bytes(serialization.Encoding.PEM))

    def certificate(self, file, common_name, organisation=None, names=(), addresses=()):
        key = self._key(file)
        parts = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
        if organisation:
            parts.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation))
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        builder = self._builder(x509.Name(parts), key).add_extension(usage, False)
        other = [x509.DNSName(name) for name in names]
        other += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
        if other:
            builder = builder.add_extension(x509.SubjectAlternativeName(other), False)
        self._write(file, builder.sign(self.key, hashes.SHA256()))

    def user(self, file, common_name, organisation=None, names=(), addresses=()):
        """A certificate, and the kubeconfig of who holds it (JSON is YAML)."""
        self.certificate(file, common_name, organisation, names, addresses)
        base = f"{self.folder}/{file}"
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "cluster",
            "clusters": [{"name": "cluster", "cluster": {"server": self.api,
                                                         "certificate-authority": f"{self.folder}/ca.crt"}}],
            "users": [{"name": file, "user": {"client-certificate": f"{base}.crt", "client-key": f"{base}.key"}}],
            "contexts": [{"name": "cluster", "context": {"cluster": "cluster", "user": file}}],
        }
        with open(f"{base}.conf", "w", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o600)) as out:
            json.dump(config, out, indent=1)
