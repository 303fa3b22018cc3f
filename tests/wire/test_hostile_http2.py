"""HTTP/2 at 15008 from authenticated peers that break the protocol or overdo it."""

import hyperframe.frame as frames
import pytest

import hbone
import programs
from mesh import ECHO
from waiting import wait_for

GOAWAY, RESET, HEADERS = frames.GoAwayFrame, frames.RstStreamFrame, frames.HeadersFrame


def closed_with_goaway(raw, seconds=10):
    """Reads until the peer closes and asserts that it said why by GOAWAY."""
    said = [frame for frame in raw.wait_closed(seconds) if isinstance(frame, GOAWAY)]
    assert said and said[-1].error_code != 0, "an error is told by GOAWAY"
    return said[-1]


def flood(raw, piece, count, times):
    """Sends the piece again and again until the peer closes; returns how often it could be sent."""
    blob = piece if isinstance(piece, bytes) else piece.serialize()
    for number in range(times):
        if not raw.send(blob * count):
            return number * count
    return times * count


def test_http_1_on_the_tls_connection_is_a_protocol_error(wire):
    with wire.under_attack("H2_PROTOCOL"), wire.raw(preface=False) as raw:
        raw.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 10)
        raw.wait_closed()


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "TRACE", "BREW"])
def test_other_methods_get_400(wire, method):
    with wire.under_attack("BAD_METHOD"), wire.raw() as raw:
        raw.send(raw.headers(1, [(":method", method), (":scheme", "http"), (":path", "/"),
                                 (":authority", wire.target)], end_stream=True))
        answer = raw.frames_until(HEADERS)[-1]
        assert raw.status(answer) == 400


@pytest.mark.parametrize("fields", [
    [(":method", "CONNECT")],
    [(":method", "CONNECT"), (":authority", "a"), (":authority", "b")],
    [(":method", "CONNECT"), (":authority", "x:1"), (":scheme", "http"), (":path", "/")],
    [(":method", "CONNECT"), (":authority", "x:1"), ("Upper", "case")],
    [(":method", "CONNECT"), (":authority", "x:1"), ("connection", "close")],
    [("a", "b"), (":method", "CONNECT"), (":authority", "x:1")],
    [(":method", "CONNECT"), (":authority", "x:1"), ("a", "line\r\nbreak: 1")],
    [(":method", "CONNECT"), (":authority", "x:1\0")],
])
def test_malformed_requests_are_refused_and_the_connection_may_go_on(wire, fields):
    with wire.under_attack(), wire.raw() as raw:
        raw.send(raw.headers(1, fields))
        found = [f for f in raw.frames_until((HEADERS, RESET, GOAWAY)) if isinstance(f, (HEADERS, RESET, GOAWAY))]
        assert found or raw.closed
        if found and isinstance(found[0], HEADERS):
            assert raw.status(found[0]) == 400


@pytest.mark.parametrize("shape", ["one long field", "many fields", "many bytes from few"])
def test_header_blocks_that_are_too_large_are_refused(wire, shape):
    fields = {"one long field": [("x", "y" * 70000)], "many fields": [(f"x{n}", "y") for n in range(500)],
              "many bytes from few": [("x", "y" * 4000)] * 5000}[shape]
    with wire.under_attack("HEADERS_TOO_LARGE"), wire.raw() as raw:
        block = raw.encoder.encode([(":method", "CONNECT"), (":authority", wire.target), *fields])
        pieces = [block[at:at + 16000] for at in range(0, len(block), 16000)]
        raw.send(HEADERS(1, pieces[0], flags=["END_HEADERS"] if len(pieces) == 1 else []))
        for number, piece in enumerate(pieces[1:], 2):
            raw.send(frames.ContinuationFrame(1, piece, flags=["END_HEADERS"] if number == len(pieces) else []))
        found = raw.frames_until((HEADERS, RESET, GOAWAY))
        assert raw.closed or isinstance(found[-1], (RESET, GOAWAY)) or raw.status(found[-1]) in (400, 431)


@pytest.mark.parametrize("size", [0, 1, 16000])
def test_continuation_frames_without_end_are_cut_off(wire, size):
    with wire.under_attack("HEADERS_TOO_LARGE", "H2_FLOOD", "H2_PROTOCOL"), wire.raw() as raw:
        raw.send(HEADERS(1, raw.encoder.encode([(":method", "CONNECT")])))
        piece = frames.ContinuationFrame(1, bytes([0x00, 1, 0x61, 1, 0x62]) * (size // 5))
        flood(raw, piece, 100 if size < 100 else 4, 2000)
        raw.wait_closed()


def test_rapid_reset_is_cut_off(wire):
    with wire.under_attack("H2_FLOOD"), wire.raw() as raw:
        sent = 0
        for _ in range(200):
            blob = b"".join(raw.connect(2 * n + 1, wire.target).serialize() + RESET(2 * n + 1, 8).serialize()
                            for n in range(sent, sent + 100))
            sent += 100
            if not raw.send(blob):
                break
        closed_with_goaway(raw)
    # What is sent after the verdict is read and forgotten, so that the peer sees the GOAWAY; it costs nothing more.
    served = wire.server.node.metrics().sum("nodemesh_connections_total", direction="inbound", reason="STREAM_RESET")
    assert served < 2000, served


@pytest.mark.parametrize("kind", ["PING", "SETTINGS", "empty DATA", "PRIORITY", "WINDOW_UPDATE", "RST_STREAM of idle",
                                  "unknown"])
def test_floods_of_frames_are_cut_off_or_cost_nothing(wire, kind):
    with wire.under_attack(), wire.raw() as raw:
        raw.send(raw.connect(1, wire.target))
        raw.frames_until(HEADERS)
        piece = {"PING": frames.PingFrame(0, b"12345678"), "SETTINGS": frames.SettingsFrame(0, settings={4: 65535}),
                 "empty DATA": frames.DataFrame(1, b""), "PRIORITY": frames.PriorityFrame(3, stream_weight=1),
                 "WINDOW_UPDATE": frames.WindowUpdateFrame(1, 1), "RST_STREAM of idle": RESET(99, 8),
                 "unknown": b"\0\0\1\xfa\0\0\0\0\0x"}[kind]
        flood(raw, piece, 1000, 300)
        if kind in ("PING", "SETTINGS", "empty DATA", "RST_STREAM of idle"):
            raw.wait_closed()


@pytest.mark.parametrize("kind", ["PING", "SETTINGS", "empty DATA"])
def test_a_flood_is_named(wire, kind):
    with wire.under_attack("H2_FLOOD"), wire.raw() as raw:
        raw.send(raw.connect(1, wire.target))
        raw.frames_until(HEADERS)
        piece = {"PING": frames.PingFrame(0, b"12345678"), "SETTINGS": frames.SettingsFrame(0, settings={4: 65535}),
                 "empty DATA": frames.DataFrame(1, b"")}[kind]
        flood(raw, piece, 1000, 300)
        raw.wait_closed()


def test_a_window_of_zero_holds_back_the_application_and_nothing_else(wire):
    source = programs.podtool(wire.server, 9401, "source:50000000")
    with wire.under_attack():
        with wire.dial(window=0) as client:
            stream, status = client.connect(f"{wire.server.ipv4}:9401")
            assert status == 200
            wait_for(lambda: programs.events(source, "accept"), 10, "the application is connected")
            with hbone.Client(wire.peer, wire.server.ipv4, wire.authority, wire.good) as other:
                second, _ = other.connect(wire.target)
                assert other.echo(second, b"beside") == b"beside"
            client.h2.increment_flow_control_window(1 << 20, stream)
            client.flush()
            client.pump(lambda: len(client.data.get(stream, b"")) >= 65535)
    source.stop()


def test_a_stream_that_is_not_read_does_not_stop_its_neighbours_on_the_connection(wire):
    source = programs.podtool(wire.server, 9402, "source:50000000")
    with wire.under_attack(), wire.dial() as client:
        stalled, _ = client.connect(f"{wire.server.ipv4}:9402")
        client.pump(lambda: len(client.data.get(stalled, b"")) >= 60000, consume=False)
        beside, _ = client.connect(wire.target)
        client.h2.increment_flow_control_window(1 << 20)
        client.flush()
        assert client.echo(beside, b"beside") == b"beside"
    source.stop()


def test_an_application_that_does_not_read_bounds_what_a_stream_may_send(wire):
    hold = programs.podtool(wire.server, 9403, "hold")
    with wire.under_attack(), wire.dial() as client:
        stream, _ = client.connect(f"{wire.server.ipv4}:9403")
        sent = 0
        client.sock.settimeout(2)
        try:
            while sent < 64 << 20:
                client.send(stream, b"z" * 65536)
                sent += 65536
        except TimeoutError:
            pass
        assert sent < 32 << 20, "flow control stops the sender"
        client.sock.settimeout(20)
        beside, _ = client.connect(wire.target)
        assert client.echo(beside, b"beside") == b"beside"
    hold.stop()


def test_a_peer_that_does_not_read_its_socket_costs_bounded_memory(wire):
    sources = [programs.podtool(wire.server, 9410 + n, "source:100000000") for n in range(2)]
    with wire.under_attack(memory_kib=40960):
        with wire.raw(settings={4: (1 << 31) - 1}) as raw:
            raw.send(frames.WindowUpdateFrame(0, (1 << 31) - 65536))
            for number in range(20):
                raw.send(raw.connect(2 * number + 1, f"{wire.server.ipv4}:{9410 + number % 2}"))
            wait_for(lambda: len(programs.events(sources[0], "accept")) == 10, 10, "all are connected")
            with wire.dial() as other:
                stream, _ = other.connect(wire.target)
                for _ in range(50):
                    assert other.echo(stream, b"beside") == b"beside"
            assert wire.memory_kib() < 200000
    for source in sources:
        source.stop()


def test_streams_above_the_advertised_limit_are_refused_and_the_others_live(wire):
    with wire.under_attack(), wire.raw() as raw:
        raw.frames_until(frames.SettingsFrame)
        raw.send(*(raw.connect(2 * n + 1, wire.target) for n in range(300)))
        refused = answered = 0
        while refused + answered < 300 and (frame := raw.frame(10)) is not None:
            refused += isinstance(frame, RESET) and frame.error_code == 7
            answered += isinstance(frame, HEADERS)
            if isinstance(frame, GOAWAY):
                break
        assert refused >= 100 or raw.closed or answered <= 200


def test_one_byte_data_frames_are_carried_at_bounded_memory(wire):
    with wire.under_attack(), wire.raw() as raw:
        raw.send(raw.connect(1, wire.target))
        raw.frames_until(HEADERS)
        flood(raw, frames.DataFrame(1, b"x"), 1000, 20)


@pytest.mark.parametrize("broken", [
    b"\0\0\0\x08\0\0\0\0\0", b"\0\0\4\x08\0\0\0\0\0\0\0\0\0", b"\0\0\1\x06\0\0\0\0\0x", b"\0\0\5\x04\0\0\0\0\0hello",
    b"\0\0\0\x00\0\0\0\0\0", b"\0\0\1\x09\0\0\0\0\1x", b"\xff\xff\xff\x00\0\0\0\0\1", b"\0\0\4\x01\x08\0\0\0\1\xff\0\0\0",
])
def test_frames_that_break_the_protocol_end_the_connection_and_say_so(wire, broken):
    with wire.under_attack("H2_PROTOCOL", "H2_FLOOD"), wire.raw() as raw:
        raw.send(broken * 3)
        closed_with_goaway(raw)


def test_a_connect_to_one_of_the_mesh_s_own_listeners_is_a_loop(wire):
    with wire.under_attack("LOOP", "WRONG_DESTINATION"), wire.raw() as raw:
        raw.send(raw.connect(1, f"{wire.server.ipv4}:15008"))
        assert raw.status(raw.frames_until(HEADERS)[-1]) == 400


def test_a_port_that_nobody_listens_on_is_503(wire):
    with wire.under_attack("CONNECT_REFUSED"), wire.raw() as raw:
        raw.send(raw.connect(1, f"{wire.server.ipv4}:4"))
        assert raw.status(raw.frames_until(HEADERS)[-1]) == 503


def test_another_pod_s_address_is_refused(wire):
    with wire.under_attack("WRONG_DESTINATION"), wire.raw() as raw:
        raw.send(raw.connect(1, f"{wire.other.ipv4}:{ECHO}"))
        assert raw.status(raw.frames_until(HEADERS)[-1]) == 400
