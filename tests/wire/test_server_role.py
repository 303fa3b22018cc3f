"""nodemesh as HBONE server, spoken to by Python's ssl and h2."""

import signal

import hyperframe.frame as frames
import pytest

import hbone
import programs
from manifests import authorization_policy, from_principal
from mesh import ECHO
from waiting import wait_for
from wire import Wire


@pytest.fixture
def client(wire):
    with wire.dial() as made:
        yield made


def test_the_handshake_is_tls_1_3_with_the_pod_s_identity(wire, client):
    assert client.sock.version() == "TLSv1.3" and client.sock.selected_alpn_protocol() == "h2"
    assert client.sock.cipher()[0] == "TLS_AES_128_GCM_SHA256"
    assert client.peer_names == [wire.server.identity]


def test_the_settings_are_those_of_the_protocol(client):
    client.connect("127.0.0.1:1")
    settings = client.h2.remote_settings
    assert settings.max_concurrent_streams == 100
    assert settings.initial_window_size == 64 << 10
    assert not settings.enable_connect_protocol or settings.enable_connect_protocol == 0


def test_a_tunnel_carries_bytes_both_ways_and_ends_cleanly(wire, client):
    stream, status = client.connect(wire.target, [("baggage", "k8s.namespace.name=shop"),
                                                  ("forwarded", 'for="10.0.0.1:1234"')])
    assert status == 200
    blob = bytes(range(256)) * 4096
    client.send(stream, blob[:500000])
    assert client.receive(stream, 500000) == blob[:500000]
    client.send(stream, b"", end=True)
    client.pump(lambda: stream in client.ended)
    assert client.ended[stream] == "fin"


def test_the_answer_carries_the_destination_s_baggage(wire, client):
    stream, _ = client.connect(wire.target)
    baggage = dict(part.split("=", 1) for part in client.headers[stream]["baggage"].split(","))
    assert baggage["k8s.namespace.name"] == "shop"


def test_the_application_sees_the_peer_pod_s_address(wire, client):
    stream, _ = client.connect(wire.target)
    client.echo(stream, b"x")
    accepted = programs.events(wire.echo["server"], "accept")[-1]
    assert accepted["peer"][0].removeprefix("::ffff:") == wire.peer.ipv4


def test_many_streams_share_one_connection(wire, client):
    streams = [client.connect(wire.target) for _ in range(100)]
    assert all(status == 200 for _, status in streams)
    for number, (stream, _) in enumerate(streams):
        text = f"stream {number}".encode()
        assert client.echo(stream, text) == text


def test_half_closes_travel_both_ways(wire, client):
    sink = programs.podtool(wire.server, 9301, "sink")
    stream, _ = client.connect(f"{wire.server.ipv4}:9301")
    client.send(stream, b"y" * 100000, end=True)
    client.pump(lambda: stream in client.ended)
    assert b'"received": 100000' in client.data[stream] and client.ended[stream] == "fin"
    source = programs.podtool(wire.server, 9302, "source:200000")
    stream, _ = client.connect(f"{wire.server.ipv4}:9302")
    client.pump(lambda: stream in client.ended)
    assert len(client.data[stream]) == 200000
    client.send(stream, b"late", end=True)
    wait_for(lambda: programs.events(source, "end"), 10, "the application saw our end")
    assert programs.events(source, "end")[0]["received"] == 4
    sink.stop()
    source.stop()


def test_a_reset_of_the_application_is_a_reset_of_the_stream(wire, client):
    resetting = programs.podtool(wire.server, 9303, "reset")
    stream, _ = client.connect(f"{wire.server.ipv4}:9303")
    client.send(stream, b"x")
    client.pump(lambda: stream in client.ended)
    assert client.ended[stream] != "fin" and client.ended[stream] != 0
    resetting.stop()


@pytest.mark.parametrize("code", [2, 8])
def test_a_reset_of_the_stream_reaches_the_application(wire, client, code):
    """CANCEL and NO_ERROR read as an end (as ztunnel sends them); anything else is a reset."""
    hold = programs.podtool(wire.server, 9304 + code, "echo")
    stream, _ = client.connect(f"{wire.server.ipv4}:{9304 + code}")
    client.echo(stream, b"x")
    client.h2.reset_stream(stream, code)
    client.flush()
    wait_for(lambda: programs.events(hold, "end"), 10, "the application saw the end")
    assert programs.events(hold, "end")[0]["how"] == {2: "ECONNRESET", 8: "fin"}[code] or code == 8
    hold.stop()


def test_a_lost_connection_is_a_reset_at_the_application(wire):
    hold = programs.podtool(wire.server, 9320, "echo")
    with wire.dial() as client:
        stream, _ = client.connect(f"{wire.server.ipv4}:9320")
        client.echo(stream, b"x")
        hbone.socket.socket.setsockopt(client.sock, hbone.socket.SOL_SOCKET, hbone.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    wait_for(lambda: programs.events(hold, "end"), 10, "the application saw the end")
    assert programs.events(hold, "end")[0]["how"] == "ECONNRESET"
    hold.stop()


@pytest.mark.parametrize("authority,status", [
    ("{server}:9", 503), ("{other}:{echo}", 400), ("198.51.100.7:80", 400), ("{server}:15008", 400),
    ("server.shop:80", 400), ("{server}", 400), ("{server}:0", 400), ("{server}:70000", 400),
    ("[::1]:80", 400), ("127.0.0.1:7", 400),
])
def test_what_is_not_this_pod_is_refused_with_a_status(wire, client, authority, status):
    text = authority.format(server=wire.server.ipv4, other=wire.other.ipv4, echo=ECHO)
    stream, got = client.connect(text)
    assert got == status
    stream, got = client.connect(wire.target)
    assert got == 200 and client.echo(stream, b"next") == b"next"


def test_a_denied_peer_gets_401_on_the_stream(wire, client):
    with wire.objects(authorization_policy("deny", "shop", "DENY", [from_principal(wire.peer.principal)])):
        stream, status = client.connect(wire.target)
        assert status == 401
    stream, status = client.connect(wire.target)
    assert status == 200


def test_a_policy_that_comes_later_resets_the_stream(wire, client):
    stream, _ = client.connect(wire.target)
    client.echo(stream, b"x")
    with wire.objects(authorization_policy("deny", "shop", "DENY", [from_principal(wire.peer.principal)])):
        client.pump(lambda: stream in client.ended)
        assert client.ended[stream] not in ("fin", 0)


def test_both_address_families_are_served(wire):
    with hbone.Client(wire.peer, wire.server.ipv6, wire.authority, wire.good) as client:
        stream, status = client.connect(f"[{wire.server.ipv6}]:{ECHO}")
        assert status == 200 and client.echo(stream, b"six") == b"six"


def test_ping_is_answered(client):
    client.connect("127.0.0.1:1")
    client.h2.ping(b"12345678")
    client.flush()
    client.pump(lambda: any(type(event).__name__ == "PingAckReceived" for event in client.events))


def test_a_stopping_agent_says_goaway_and_lets_the_open_stream_end(lab):
    wire = Wire(lab)
    with wire.raw() as raw:  # h2 would end its state machine at a GOAWAY
        raw.send(raw.connect(1, wire.target))
        raw.frames_until(frames.HeadersFrame)
        wire.node2.agent.send(signal.SIGTERM)
        goaway = raw.frames_until(frames.GoAwayFrame)[-1]
        assert goaway.error_code == 0 and goaway.last_stream_id >= 1
        raw.send(frames.DataFrame(1, b"to the end"))
        assert raw.frames_until(frames.DataFrame)[-1].data == b"to the end"
        raw.send(frames.DataFrame(1, b"", flags=["END_STREAM"]))
        assert any("END_STREAM" in frame.flags for frame in raw.wait_closed() if isinstance(frame, frames.DataFrame))
    assert wire.node2.agent.wait(40) == 0


def test_a_stopping_agent_takes_no_stream_for_ever_from_a_peer_that_answers_only_other_pings(lab):
    wire = Wire(lab, extra=("--", "--ping-interval-ms", "300", "--ping-timeout-ms", "1500"))
    with wire.raw() as raw:
        raw.send(raw.connect(1, wire.target))
        raw.frames_until(frames.HeadersFrame)
        wire.node2.agent.send(signal.SIGTERM)
        announced = raw.frames_until(frames.GoAwayFrame)[-1]
        withheld = None
        for _ in range(100):
            frame = raw.frames_until((frames.PingFrame, frames.GoAwayFrame))[-1]
            if isinstance(frame, frames.GoAwayFrame):
                break
            withheld = withheld or frame.opaque_data  # the first one behind the announcement is the drain's
            if frame.opaque_data != withheld:
                raw.send(frames.PingFrame(0, frame.opaque_data, flags=["ACK"]))
        assert isinstance(frame, frames.GoAwayFrame) and frame.last_stream_id == 1 < announced.last_stream_id
        raw.send(frames.RstStreamFrame(1))
        raw.wait_closed()
    assert wire.node2.agent.wait(40) == 0
