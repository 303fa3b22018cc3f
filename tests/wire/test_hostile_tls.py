"""Handshakes at 15008 that must fail, each for its own reason and at nobody else's cost."""

import ssl

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

import certificates
import hbone
from certificates import HOUR

SPIFFE = "spiffe://cluster.local/ns/shop/sa/"


def refused(wire, credential, **options):
    """A connection with the credential; with TLS 1.3 the refusal comes with the first read."""
    context = hbone.client_context(wire.authority, credential, **options)
    try:
        with hbone.tls(wire.peer, wire.server.ipv4, context) as sock:
            sock.sendall(hbone.PREFACE)
            return sock.recv(1) == b""
    except (ssl.SSLError, ConnectionError):
        return True


def _stranger(wire):
    return certificates.Authority.stranger(f"{wire.lab.dir}/certificates")


CREDENTIALS = {
    "no certificate": (lambda w: None, "PEER_CERT_MISSING"),
    "expired": (lambda w: w.authority.issue(SPIFFE + "a", start=-2 * HOUR, end=-HOUR), "PEER_CERT_INVALID"),
    "not yet valid": (lambda w: w.authority.issue(SPIFFE + "a", start=HOUR, end=2 * HOUR), "PEER_CERT_INVALID"),
    "signed by a stranger": (lambda w: _stranger(w).issue(SPIFFE + "a"), "PEER_CERT_INVALID"),
    "only for servers": (lambda w: w.authority.issue(SPIFFE + "a", usages=[ExtendedKeyUsageOID.SERVER_AUTH]),
                         "PEER_CERT_INVALID"),
    "RSA with 1024 bits": (lambda w: w.authority.issue(SPIFFE + "a", bits=1024), "PEER_CERT_INVALID"),
    "another trust domain": (lambda w: w.authority.issue("spiffe://evil.example/ns/shop/sa/a"), "TRUST_DOMAIN"),
    "two identities": (lambda w: w.authority.issue(SPIFFE + "a", SPIFFE + "b"), "PEER_ID_INVALID"),
    "the same identity twice": (lambda w: w.authority.issue(SPIFFE + "a", SPIFFE + "a"), "PEER_ID_INVALID"),
    "NUL in the name": (lambda w: w.authority.issue(SPIFFE + "a\0.evil.example"), "PEER_ID_INVALID"),
    "NUL in the trust domain": (lambda w: w.authority.issue("spiffe://cluster.local\0.evil/ns/shop/sa/a"),
                                "PEER_ID_INVALID"),
    "no name at all": (lambda w: w.authority.issue(), "PEER_ID_INVALID"),
    "only a DNS name": (lambda w: w.authority.issue(dns=["server.shop"]), "PEER_ID_INVALID"),
    "a name that is no SPIFFE id": (lambda w: w.authority.issue("https://cluster.local/ns/shop/sa/a"),
                                    "PEER_ID_INVALID"),
    "a SPIFFE id of another form": (lambda w: w.authority.issue("spiffe://cluster.local/workload/a"),
                                    "PEER_ID_INVALID"),
    "an empty service account": (lambda w: w.authority.issue(SPIFFE), "PEER_ID_INVALID"),
}


@pytest.mark.parametrize("fault", CREDENTIALS)
def test_a_client_with_a_bad_certificate_is_refused(wire, fault):
    make, reason = CREDENTIALS[fault]
    with wire.under_attack(reason):
        for _ in range(3):
            assert refused(wire, make(wire))


def test_a_client_with_rsa_2048_is_served(wire):
    """Istio's sidecars have such keys, so it is no fault: the size decides, not the algorithm."""
    credential = wire.authority.issue(SPIFFE + "a", bits=2048)
    with hbone.Client(wire.peer, wire.server.ipv4, wire.authority, credential) as client:
        stream, status = client.connect(wire.target)
        assert status == 200 and client.echo(stream, b"rsa") == b"rsa"


def test_tls_1_2_is_refused(wire):
    with wire.under_attack("TLS_FAILED"):
        assert refused(wire, wire.good, version=ssl.TLSVersion.TLSv1_2)


@pytest.mark.parametrize("alpn", [(), ("http/1.1",), ("h3",)])
def test_a_client_that_does_not_offer_http_2_is_refused(wire, alpn):
    with wire.under_attack("ALPN_MISMATCH"):
        assert refused(wire, wire.good, alpn=alpn)


@pytest.mark.parametrize("greeting", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", hbone.PREFACE, b"\x16\x03\x01\xff\xff",
                                      b"\0" * 1000, b"\x16\x03\x01\x00\x05\x01\xff\xff\xff\xff"])
def test_bytes_that_are_no_handshake_are_refused(wire, greeting):
    with wire.under_attack("TLS_FAILED"):
        with hbone.dial(wire.peer, wire.server.ipv4) as sock:
            sock.sendall(greeting)
            sock.shutdown(hbone.socket.SHUT_WR)
            try:
                while sock.recv(4096):
                    pass
            except ConnectionError:
                pass


def test_handshakes_that_never_end_are_ended_and_hold_nobody_up(wire):
    with wire.under_attack("HANDSHAKE_TIMEOUT") as good:
        waiting = [hbone.dial(wire.peer, wire.server.ipv4, timeout=20) for _ in range(200)]
        for number, sock in enumerate(waiting):
            if number % 2:
                sock.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        good.check()
        for sock in waiting:
            try:
                assert sock.recv(1) in (b"", b"\x15"), "ended, perhaps with an alert"
            except ConnectionError:
                pass
            sock.close()


def test_connections_that_are_cut_in_the_handshake_leave_nothing(wire):
    with wire.under_attack():
        for _ in range(300):
            with hbone.dial(wire.peer, wire.server.ipv4) as sock:
                sock.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 32)
