"""What is really on a link: tcpdump in a node's namespace, and a judge of the packets that knows no mesh code.

The judge reassembles every TCP stream and walks its TLS records: the claim "everything between the nodes is HBONE"
is that each segment is to or from port 15008 and each record after the handshake is application data.
"""

import ipaddress
import os
import signal
import socket
import struct
from dataclasses import dataclass, field

import netns
from waiting import wait_for

HBONE_PORT = 15008
HANDSHAKE, CHANGE_CIPHER, ALERT, APPLICATION = 22, 20, 21, 23
CIPHERS = {0x1301: "TLS_AES_128_GCM_SHA256", 0x1302: "TLS_AES_256_GCM_SHA384", 0x1303: "TLS_CHACHA20_POLY1305_SHA256"}
VERSIONS = {0x0303: "TLSv1.2", 0x0304: "TLSv1.3"}


@dataclass
class Stream:
    """One direction of a TCP connection."""

    source: tuple
    target: tuple
    segments: list = field(default_factory=list)  # (sequence number, payload)
    start: int | None = None  # first sequence number of data, known when the SYN was seen
    resets: int = 0

    def data(self):
        """The bytes in order, and whether a piece is missing in the middle."""
        if not self.segments:
            return b"", False
        base = self.start if self.start is not None else self.segments[0][0]
        placed = sorted(((seq - base) & 0xFFFFFFFF, payload) for seq, payload in self.segments)
        out = bytearray()
        for offset, payload in placed:
            if offset >= 1 << 31:
                continue  # before the first byte: a keepalive probe or an old retransmission
            if offset > len(out):
                return bytes(out), True
            out += payload[len(out) - offset:]
        return bytes(out), False


@dataclass
class Report:
    """The findings about one capture."""

    streams: dict
    violations: list
    versions: set
    ciphers: set
    application_records: int
    payload_bytes: int

    def contains(self, needle):
        """True if the bytes appear in any stream as they are."""
        return any(needle in stream.data()[0] for stream in self.streams.values())

    def ports(self):
        """Ports of the passive ends."""
        return {min(stream.source[1], stream.target[1]) for stream in self.streams.values()}

    def require_hbone_only(self):
        """Raises AssertionError unless HBONE was seen and nothing else."""
        if not self.application_records:
            raise AssertionError("\n".join(["no TLS application data was seen between the nodes", *self.violations[:10]]))
        if self.violations:
            more = f"\nand {len(self.violations) - 10} more" if len(self.violations) > 10 else ""
            raise AssertionError("\n".join(self.violations[:10]) + more)


def _packets(path):
    with open(path, "rb") as pcap:
        magic, = struct.unpack("<I", pcap.read(24)[:4])
        if magic not in (0xA1B2C3D4, 0xA1B23C4D):
            raise ValueError(f"{path} is no little-endian pcap file")
        while len(head := pcap.read(16)) == 16:
            _, _, kept, full = struct.unpack("<IIII", head)
            packet = pcap.read(kept)
            if kept != full:
                raise ValueError(f"{path}: a packet was cut to {kept} of {full} bytes")
            if len(packet) == kept:
                yield packet


def _tcp_of(packet):
    """(source address, target address, TCP segment) of an Ethernet frame, or None for anything else."""
    kind, = struct.unpack("!H", packet[12:14])
    if kind == 0x0800:
        header = (packet[14] & 15) * 4
        total, = struct.unpack("!H", packet[16:18])
        if struct.unpack("!H", packet[20:22])[0] & 0x3FFF:
            raise ValueError("an IP fragment was captured")
        if packet[23] != socket.IPPROTO_TCP:
            return None
        segment = packet[14 + header:14 + total if total else None]
        return str(ipaddress.ip_address(packet[26:30])), str(ipaddress.ip_address(packet[30:34])), segment
    if kind == 0x86DD and packet[20] == socket.IPPROTO_TCP:
        length, = struct.unpack("!H", packet[18:20])
        segment = packet[54:54 + length if length else None]
        return str(ipaddress.ip_address(packet[22:38])), str(ipaddress.ip_address(packet[38:54])), segment
    return None


def _streams(path):
    streams = {}
    for packet in _packets(path):
        found = _tcp_of(packet)
        if not found:
            continue
        source, target, segment = found
        sport, dport, seq, _, offset, flags = struct.unpack("!HHIIBB", segment[:14])
        key = ((source, sport), (target, dport))
        stream = streams.setdefault(key, Stream(*key))
        if flags & 2:
            if stream.start is not None and stream.start != (seq + 1) & 0xFFFFFFFF:  # the ports were used again
                streams[(*key, len(streams))] = stream
                stream = streams[key] = Stream(*key)
            stream.start = (seq + 1) & 0xFFFFFFFF
        stream.resets += bool(flags & 4)
        if payload := segment[(offset >> 4) * 4:]:
            stream.segments.append((seq, payload))
    return streams


def _hello(record):
    """(version, cipher) of a ServerHello handshake record, or None."""
    if len(record) < 44 or record[0] != 2:
        return None
    at = 38 + 1 + record[38]
    cipher, = struct.unpack("!H", record[at:at + 2])
    version, = struct.unpack("!H", record[4:6])
    at += 5
    while at + 4 <= len(record):
        kind, length = struct.unpack("!HH", record[at:at + 4])
        if kind == 43:
            version, = struct.unpack("!H", record[at + 4:at + 6])
        at += 4 + length
    return version, cipher


def _judge_records(stream, data, report):
    """Walks the TLS records of one direction. A stream that was open before the capture has no handshake to show."""
    name = f"{stream.source} -> {stream.target}"
    at, encrypted = 0, stream.start is None
    while at + 5 <= len(data):
        kind, version, length = struct.unpack("!BHH", data[at:at + 5])
        if version not in (0x0301, 0x0303) or length > 16640 or kind not in (20, 21, 22, 23):
            report.violations.append(f"{name}: byte {at} begins no TLS record: {data[at:at + 16]!r}")
            return
        if kind == APPLICATION:
            encrypted = True
            report.application_records += 1
        elif encrypted:
            report.violations.append(f"{name}: a record of type {kind} after the handshake")
        elif kind == HANDSHAKE and (hello := _hello(data[at + 5:at + 5 + length])):
            report.versions.add(VERSIONS.get(hello[0], hex(hello[0])))
            report.ciphers.add(CIPHERS.get(hello[1], hex(hello[1])))
        at += 5 + length


def judge(path):
    """Reads a pcap file and returns a Report."""
    report = Report(_streams(path), [], set(), set(), 0, 0)
    for stream in report.streams.values():
        data, gap = stream.data()
        report.payload_bytes += len(data)
        if HBONE_PORT not in (stream.source[1], stream.target[1]):
            report.violations.append(f"{stream.source} -> {stream.target}: TCP outside of port {HBONE_PORT}, "
                                     f"{len(data)} bytes: {data[:32]!r}")
            continue
        if gap:
            report.violations.append(f"{stream.source} -> {stream.target}: bytes are missing from the capture")
        _judge_records(stream, data, report)
    return report


class Capture:
    """tcpdump on one interface of a node, from entering the block to leaving it."""

    def __init__(self, node, interface="eth0", filter=("tcp",)):
        self.node = node
        self.interface = interface
        self.filter = list(filter)
        self.path = f"{node.dir}/capture-{os.urandom(3).hex()}.pcap"
        self._process = None

    def __enter__(self):
        self._process = self.node.spawn(
            ["tcpdump", "-n", "-i", self.interface, "-U", "-Z", "root", "-B", "65536", "--immediate-mode", "-w",
             self.path, "(", *self.filter, ")", "or", "udp", "port", "9"], log=f"{self.path}.log")
        self._process.wait_output("listening on")
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        """Ends the recording once everything sent before this call is in the file."""
        if not self._process.running:
            return
        marker = b"nodemesh-lab-end-" + os.urandom(8).hex().encode()

        # To everybody on the wire; a node may have no IPv4.
        family, everybody = (socket.AF_INET, "10.0.0.255") if self.node.ipv4 else (socket.AF_INET6, "ff02::1")

        def recorded():
            with netns.entered(self.node.netns), socket.socket(family, socket.SOCK_DGRAM) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self.interface.encode())
                sock.sendto(marker, (everybody, 9))
            with open(self.path, "rb") as pcap:
                pcap.seek(max(0, os.path.getsize(self.path) - 65536))
                return marker in pcap.read()

        wait_for(recorded, 10, "the end of the capture is on disk")
        self._process.stop(signal.SIGINT)
        if "0 packets dropped by kernel" not in self._process.output():
            raise AssertionError(f"tcpdump lost packets:\n{self._process.output()}")

    def report(self):
        """Stops if need be and judges what was recorded."""
        self.stop()
        return judge(self.path)
