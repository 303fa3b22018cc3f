"""An independent client of Istio's certificate service: Python's ssl and h2, protobuf by hand."""

import socket
import ssl

import h2.config
import h2.connection
import h2.events
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from waiting import FACTOR

PATH = "/istio.v1.auth.IstioCertificateService/CreateCertificate"


def _varint(number):
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(out) + bytes([number])


def _field(number, data):
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def request_message(csr, identity=None, seconds=0):
    """An IstioCertificateRequest."""
    out = _field(1, csr)
    if seconds:
        out += _varint(3 << 3) + _varint(seconds)
    if identity is not None:
        out += _field(4, _field(1, _field(1, b"ImpersonatedIdentity") + _field(2, _field(3, identity.encode()))))
    return out


def chain_of(message):
    """The cert_chain of an IstioCertificateResponse."""
    out, at = [], 0
    while at < len(message):
        assert message[at] == 0x0A, message
        at, size, shift = at + 1, 0, 0
        while True:
            size |= (message[at] & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if not message[at - 1] & 0x80:
                break
        out.append(message[at:at + size].decode())
        at += size
    return out


def make_csr(uri="spiffe://cluster.local/ns/kube-system/sa/somebody-else"):
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(
        x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


class Refused(Exception):
    def __init__(self, code, message):
        super().__init__(f"gRPC code {code}: {message}")
        self.code, self.message = code, message


class CaClient:
    def __init__(self, port, roots, name="nodemesh-controller.mesh.svc", source="127.0.0.1", alpn=("h2",), version=None,
                 host="127.0.0.1"):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=roots)
        if alpn:
            context.set_alpn_protocols(list(alpn))
        if version:
            context.minimum_version = context.maximum_version = version
        raw = socket.create_connection((host, port), 20 * FACTOR, (source, 0) if source else None)
        try:
            self.sock = context.wrap_socket(raw, server_hostname=name)
        except (OSError, ssl.SSLError):
            raw.close()
            raise
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.sock.sendall(self.h2.data_to_send())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    def ask(self, token, identity=None, csr=None, path=PATH, seconds=0, cluster=None):
        """The certificate chain as a list of PEM texts; raises Refused."""
        message = request_message(csr or make_csr(), identity, seconds)
        stream = self.h2.get_next_available_stream_id()
        headers = [(":method", "POST"), (":scheme", "https"), (":path", path), (":authority", "ca"),
                   ("te", "trailers"), ("content-type", "application/grpc")]
        if token is not None:
            headers.append(("authorization", f"Bearer {token}"))
        if cluster is not None:
            headers.append(("clusterid", cluster))
        self.h2.send_headers(stream, headers)
        framed = b"\0" + len(message).to_bytes(4, "big") + message
        self.fields, self.data, self.ended = {}, b"", False
        while framed and not self.ended:
            size = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size, len(framed))
            if size == 0:
                self._receive(stream)
                continue
            self.h2.send_data(stream, framed[:size], end_stream=size == len(framed))
            framed = framed[size:]
            self.sock.sendall(self.h2.data_to_send())
        while not self.ended:
            self._receive(stream)
        fields, data = self.fields, self.data
        code = int(fields.get("grpc-status", "2"))
        if code != 0:
            raise Refused(code, fields.get("grpc-message", ""))
        return chain_of(data[5:])

    def _receive(self, stream):
        got = self.sock.recv(65536)
        if not got:
            raise ConnectionError("the server closed the connection")
        for event in self.h2.receive_data(got):
            if getattr(event, "stream_id", None) != stream:
                continue
            if isinstance(event, (h2.events.ResponseReceived, h2.events.TrailersReceived)):
                self.fields |= dict(event.headers)
            elif isinstance(event, h2.events.DataReceived):
                self.data += event.data
                self.h2.acknowledge_received_data(event.flow_controlled_length, stream)
            elif isinstance(event, (h2.events.StreamEnded, h2.events.StreamReset)):
                self.ended = True
        self.sock.sendall(self.h2.data_to_send())
