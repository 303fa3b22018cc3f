"""An independent HBONE client and server: Python's ssl and h2, nothing of ours. And RawClient, which says whatever a
test wants, frame by frame, with no library in between that would refuse to."""

import contextlib
import socket
import ssl
import threading
import time

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import hpack
import hyperframe.exceptions
import hyperframe.frame as frames

import certificates
import netns
from waiting import FACTOR

PORT = 15008
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def client_context(authority, credential, alpn=("h2",), version=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.set_ciphers("DEFAULT@SECLEVEL=0")  # or it would not even show a certificate that is too weak
    context.load_verify_locations(authority.root_file)
    if credential:
        context.load_cert_chain(credential.chain_file, credential.key_file)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if version:
        context.minimum_version = context.maximum_version = version
    return context


def dial(pod, host, port=PORT, timeout=10.0):
    """A TCP connection from a pod's address, made by the test itself: outside of the pod's cgroup, so not captured."""
    return netns.connect(pod.netns, (host, port), timeout * FACTOR)


def tls(pod, host, context, port=PORT, timeout=10.0):
    """A TLS connection after its handshake. With TLS 1.3 a server's refusal of our certificate comes later."""
    sock = dial(pod, host, port, timeout)
    try:
        return context.wrap_socket(sock)
    except (OSError, ssl.SSLError):
        sock.close()
        raise


class Client:
    """An HBONE client by the book. One thread; every wait has the socket's deadline."""

    def __init__(self, pod, host, authority, credential, alpn=("h2",), window=None, timeout=10.0):
        self.sock = tls(pod, host, client_context(authority, credential, alpn), timeout=timeout)
        self.peer_names = certificates.uris(self.sock.getpeercert(binary_form=True))
        # h2 asks for :path in every request, which CONNECT must not have (RFC 9113 8.5): its check is off where it sends.
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8", validate_outbound_headers=False)
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        if window is not None:
            self.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.events = []
        self.data = {}  # stream -> bytes
        self.ended = {}  # stream -> "fin" or the code of RST_STREAM
        self.headers = {}
        self.goaway = None
        self.flush()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.sock.close()

    def flush(self):
        self.sock.sendall(self.h2.data_to_send())

    def pump(self, until, consume=True):
        """Reads and answers frames until the condition holds; raises EOFError when the connection ends before."""
        while not until():
            got = self.sock.recv(65536)
            if not got:
                raise EOFError(f"the connection ended; goaway {self.goaway}")
            for event in self.h2.receive_data(got):
                self._take(event, consume)
            self.flush()

    def _take(self, event, consume):
        self.events.append(event)
        if isinstance(event, h2.events.ResponseReceived):
            self.headers[event.stream_id] = dict(event.headers)
        elif isinstance(event, h2.events.DataReceived):
            self.data[event.stream_id] = self.data.get(event.stream_id, b"") + event.data
            if consume and event.flow_controlled_length:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self.ended.setdefault(event.stream_id, "fin")
        elif isinstance(event, h2.events.StreamReset):
            self.ended[event.stream_id] = event.error_code
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.goaway = event.error_code

    def connect(self, authority, extra=()):
        """Opens a tunnel; returns (stream, status), or (stream, None) when the stream was reset unanswered."""
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, [(":method", "CONNECT"), (":authority", authority), *extra])
        self.flush()
        self.pump(lambda: stream in self.headers or stream in self.ended)
        status = self.headers.get(stream, {}).get(":status")
        return stream, int(status) if status else None

    def send(self, stream, data, end=False):
        """Sends all of it, waiting for window where it must."""
        at = 0
        while at < len(data) or (end and not data):
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size, len(data) - at)
            if data and room <= 0:
                self.pump(lambda: self.h2.local_flow_control_window(stream) > 0 or stream in self.ended)
                if stream in self.ended:
                    return
                continue
            self.h2.send_data(stream, data[at:at + room], end_stream=end and at + room == len(data))
            at += room
            self.flush()
            if not data:
                return

    def receive(self, stream, count):
        """Exactly count bytes of the stream, which are taken off."""
        self.pump(lambda: len(self.data.get(stream, b"")) >= count or stream in self.ended)
        got = self.data.get(stream, b"")
        self.data[stream] = got[count:]
        return got[:count]

    def echo(self, stream, data):
        self.send(stream, data)
        return self.receive(stream, len(data))


class RawClient:
    """TLS to 15008 and then frames as the test says them. reply() reads frames; nothing is answered by itself."""

    def __init__(self, pod, host, authority, credential, settings=None, timeout=10.0, preface=True):
        self.sock = tls(pod, host, client_context(authority, credential), timeout=timeout)
        self.encoder = hpack.Encoder()
        self.decoder = hpack.Decoder()
        self._buffer = b""
        self.closed = False
        if preface:
            self.sock.sendall(PREFACE)
            self.send(frames.SettingsFrame(0, settings=settings or {}))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    def send(self, *what):
        """Sends frames (or bytes as they are). A peer that has closed is noted, not raised: it is what tests expect."""
        blob = b"".join(one if isinstance(one, bytes) else one.serialize() for one in what)
        try:
            self.sock.sendall(blob)
        except (ssl.SSLError, OSError):
            self.closed = True
        return not self.closed

    def headers(self, stream, fields, end_headers=True, end_stream=False):
        flags = [name for name, on in (("END_HEADERS", end_headers), ("END_STREAM", end_stream)) if on]
        return frames.HeadersFrame(stream, self.encoder.encode(fields), flags=flags)

    def connect(self, stream, authority, **options):
        return self.headers(stream, [(":method", "CONNECT"), (":authority", authority)], **options)

    def frame(self, seconds=10.0):
        """The next frame, or None when the connection has ended or nothing came in time."""
        self.sock.settimeout(seconds * FACTOR)
        try:
            while True:
                if len(self._buffer) >= 9:
                    frame, length = frames.Frame.parse_frame_header(memoryview(self._buffer[:9]))
                    if len(self._buffer) >= 9 + length:
                        frame.parse_body(memoryview(self._buffer[9:9 + length]))
                        self._buffer = self._buffer[9 + length:]
                        return frame
                got = self.sock.recv(65536)
                if not got:
                    self.closed = True
                    return None
                self._buffer += got
        except (ssl.SSLError, OSError, hyperframe.exceptions.HyperframeError) as error:
            self.closed = self.closed or not isinstance(error, TimeoutError)
            return None

    def frames_until(self, kind, seconds=10.0):
        """Frames up to and with the first of the kind; without it when the connection ended before."""
        found, deadline = [], time.monotonic() + seconds * FACTOR
        while (left := deadline - time.monotonic()) > 0:
            frame = self.frame(left / FACTOR)
            if frame is None:
                break
            found.append(frame)
            if isinstance(frame, kind):
                break
        return found

    def wait_closed(self, seconds=10.0):
        """Reads on until the peer closes; returns the frames it still sent. Fails when it does not close."""
        found, deadline = [], time.monotonic() + seconds * FACTOR
        while not self.closed and (left := deadline - time.monotonic()) > 0:
            if frame := self.frame(left / FACTOR):
                found.append(frame)
        assert self.closed, "the peer keeps the connection open"
        return found

    def status(self, frame):
        return int(dict(self.decoder.decode(frame.data))[":status"])


class Server:
    """An HBONE server in a pod without an agent: accepts CONNECT and echoes, and notes what it was sent.

    Runs in threads of the test process; `mode` is echo, refuse (503), reset, stall (never answers) or goaway.
    """

    def __init__(self, pod, authority, credential, mode="echo", alpn=("h2",), max_streams=None):
        self.mode, self.max_streams = mode, max_streams
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_3
        self.context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE  # the client's order decides
        self.context.load_cert_chain(credential.chain_file, credential.key_file)
        self.context.load_verify_locations(authority.root_file)
        self.context.verify_mode = ssl.CERT_REQUIRED
        if alpn:
            self.context.set_alpn_protocols(list(alpn))
        self.connections = []  # dicts: names, alpn, cipher, version, sni
        self.requests = []  # dicts of header fields
        self.remote_settings = []
        self.ends = []  # per stream: "fin" or the code of RST_STREAM
        self.errors = []
        self.refused = 0
        self._sockets = []
        self._after = []
        with netns.entered(pod.netns):
            self.listener = socket.create_server(("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        for sock in (self.listener, *self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self._threads:
            thread.join(5)

    def _accept(self):
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock):
        sock.settimeout(60)
        sni = []
        try:
            self.context.sni_callback = lambda _, name, __: sni.append(name)
            with self.context.wrap_socket(sock, server_side=True) as secure:
                self._sockets.append(secure)
                names = secure.getpeercert(binary_form=True)
                self.connections.append({
                    "names": certificates.uris(names) if names else [], "alpn": secure.selected_alpn_protocol(),
                    "cipher": secure.cipher()[0], "version": secure.version(), "sni": sni[0] if sni else None})
                self._speak(secure)
        except (ssl.SSLError, OSError, EOFError, h2.exceptions.ProtocolError) as error:
            self.errors.append(error)

    def _speak(self, secure):
        conn = h2.connection.H2Connection(h2.config.H2Configuration(
            client_side=False, header_encoding="utf-8", validate_inbound_headers=False))
        conn.initiate_connection()
        greeting = conn.data_to_send()
        if self.max_streams:  # not by h2, which ends the connection where RFC 9113 5.1.2 lets a stream be refused
            greeting += frames.SettingsFrame(0, settings={3: self.max_streams}).serialize()
        secure.sendall(greeting)
        waiting = {}  # stream -> bytes to echo, and whether the end follows
        while data := secure.recv(65536):
            for event in conn.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    self._answer(conn, event, waiting)
                elif isinstance(event, h2.events.DataReceived):
                    conn.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    if event.stream_id in waiting:
                        waiting[event.stream_id][0] += event.data
                elif isinstance(event, h2.events.StreamEnded):
                    self.ends.append("fin")
                    if event.stream_id in waiting:
                        waiting[event.stream_id][1] = True
                elif isinstance(event, h2.events.StreamReset):
                    self.ends.append(event.error_code)
                    waiting.pop(event.stream_id, None)
                elif isinstance(event, h2.events.RemoteSettingsChanged):
                    self.remote_settings.append({int(k): v.new_value for k, v in event.changed_settings.items()})
            self._echo(conn, waiting)
            secure.sendall(conn.data_to_send() + b"".join(self._after))
            self._after.clear()

    def _answer(self, conn, event, waiting):
        if self.max_streams and len(waiting) >= self.max_streams:
            self.refused += 1
            conn.reset_stream(event.stream_id, 7)
            return
        self.requests.append(dict(event.headers))
        if self.mode == "refuse":
            conn.send_headers(event.stream_id, [(":status", "503")], end_stream=True)
        elif self.mode == "reset":
            conn.reset_stream(event.stream_id, 2)
        elif self.mode != "stall":
            conn.send_headers(event.stream_id, [(":status", "200")])
            waiting[event.stream_id] = [bytearray(), False]
            if self.mode == "goaway":  # not h2's own, which would end its state machine
                self._after.append(frames.GoAwayFrame(0, last_stream_id=event.stream_id).serialize())

    @staticmethod
    def _echo(conn, waiting):
        for stream, entry in list(waiting.items()):
            data, ending = entry
            while data and (room := min(conn.local_flow_control_window(stream), conn.max_outbound_frame_size)) > 0:
                conn.send_data(stream, bytes(data[:room]))
                del data[:room]
            if ending and not data:
                conn.end_stream(stream)
                del waiting[stream]
