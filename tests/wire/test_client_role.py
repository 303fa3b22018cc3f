"""nodemesh as HBONE client, in front of a server that is Python's ssl and h2."""

import re

import pytest

import certificates
import hbone
from mesh import ECHO
from waiting import wait_for


@pytest.fixture
def serve(wire):
    servers = []

    def start(credential=None, authority=None, **options):
        servers.append(hbone.Server(wire.peer, authority or wire.authority, credential or wire.good, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def exchange(wire, *words):
    return wire.curl.tool("exchange", wire.peer.ipv4, ECHO, *words)


@pytest.fixture(autouse=True)
def fresh_client(wire):
    """A client pod of the test's own, so that no pooled connection of another test is used."""
    wire.curl = wire.node1.pod("fresh", "shop", "curl", {"app": "fresh"})
    wire.wait_reaches(wire.curl, wire.server)
    yield
    wire.curl.remove()


def test_a_connection_of_a_pod_becomes_a_connect_as_the_protocol_says(wire, serve):
    server = serve()
    result = exchange(wire, "--send", 100000, "--half-close")
    assert result["received"] == 100000 and result["how"] == "fin", (result, server.errors)
    connection, request = server.connections[0], server.requests[0]
    assert connection["names"] == [wire.curl.identity]
    assert connection["version"] == "TLSv1.3" and connection["cipher"] == "TLS_AES_128_GCM_SHA256"
    assert connection["alpn"] == "h2" and connection["sni"] is None
    assert request[":method"] == "CONNECT" and request[":authority"] == f"{wire.peer.ipv4}:{ECHO}"
    assert ":scheme" not in request and ":path" not in request and ":protocol" not in request
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]", request["traceparent"])
    assert f'for="{wire.curl.ipv4}:' in request["forwarded"]
    baggage = dict(part.split("=", 1) for part in request["baggage"].split(","))
    assert baggage["k8s.namespace.name"] == "shop" and "fresh" in baggage.values()
    settings = server.remote_settings[0]
    assert settings.get(2, 0) == 0, "no push"


def test_connections_share_a_tunnel_up_to_its_limit(wire, serve):
    server = serve()
    for _ in range(5):
        assert exchange(wire, "--send", 10)["how"] == "complete"
    assert len(server.connections) == 1 and len(server.requests) == 5
    many = wire.curl.spawn_tool("many", wire.peer.ipv4, ECHO, 150, "--hold")
    many.wait_output('"many"', 20)
    assert '"ok": 150' in many.output()
    assert 2 <= len(server.connections) <= 4, "100 streams per connection"
    many.kill()


def test_a_peer_s_limit_of_streams_is_kept(wire, serve):
    server = serve(max_streams=10)
    assert exchange(wire, "--send", 1)["how"] == "complete"
    many = wire.curl.spawn_tool("many", wire.peer.ipv4, ECHO, 30, "--hold")
    many.wait_output('"many"', 20)
    assert '"ok": 30' in many.output(), (many.output(), server.errors)
    assert len(server.connections) >= 3 and server.refused <= 30
    many.kill()


def test_a_refusal_is_a_reset_at_the_program(wire, serve):
    serve(mode="refuse")
    with wire.expect_reason(wire.node1, "TUNNEL_REFUSED"):
        assert exchange(wire, "--send", 1)["how"] == "ECONNRESET"


def test_a_reset_stream_is_a_reset_at_the_program(wire, serve):
    serve(mode="reset")
    assert exchange(wire, "--send", 1)["how"] == "ECONNRESET"


def test_a_lost_tunnel_is_a_reset_at_the_program_and_the_next_one_is_new(wire, serve):
    server = serve()
    session = wire.curl.spawn_tool("session", wire.peer.ipv4, ECHO)
    session.wait_output('"open"')
    with hbone.netns.entered(wire.peer.netns):
        pass
    wire.peer.run(["ss", "-K", "sport", "=", "15008"], check=False)
    session.wait_output('"session"')
    assert '"ECONNRESET"' in session.output()
    assert exchange(wire, "--send", 1)["how"] == "complete"
    assert len(server.connections) == 2


def test_after_goaway_new_connections_take_a_new_tunnel(wire, serve):
    server = serve(mode="goaway")
    session = wire.curl.spawn_tool("session", wire.peer.ipv4, ECHO)
    session.wait_output('"open"')
    assert exchange(wire, "--send", 1)["how"] == "complete"
    assert len(server.connections) == 2
    assert '"session"' not in session.output(), "the open stream lives on"
    session.stop()


@pytest.mark.parametrize("fault,reason", [
    ("another identity", "PEER_ID_MISMATCH"), ("a stranger's signature", "PEER_CERT_INVALID"),
    ("expired", "PEER_CERT_INVALID"), ("two identities", "PEER_ID_INVALID"), ("no ALPN", "ALPN_MISMATCH"),
])
def test_a_server_that_is_not_who_it_should_be_gets_no_byte(wire, serve, fault, reason):
    authority, alpn = wire.authority, ("h2",)
    names, options = [wire.peer.identity], {}
    if fault == "another identity":
        names = [wire.other.identity]
    elif fault == "a stranger's signature":
        authority = certificates.Authority.stranger(f"{wire.lab.dir}/certificates")
    elif fault == "expired":
        options = {"start": -2 * certificates.HOUR, "end": -certificates.HOUR}
    elif fault == "two identities":
        names.append(wire.other.identity)
    else:
        alpn = ()
    server = serve(authority.issue(*names, **options), alpn=alpn)
    with wire.expect_reason(wire.node1, reason):
        assert exchange(wire, "--send", 1)["how"] == "ECONNRESET"
    assert not server.requests
    assert wire.reaches(wire.curl, wire.server), "others are served meanwhile"


def test_nothing_on_15008_means_failure_and_never_plaintext(wire):
    with wire.lab.capture(wire.node1) as capture:
        with wire.expect_reason(wire.node1, "CONNECT_REFUSED"):
            assert exchange(wire, "--send", 1)["how"] == "ECONNRESET"
    assert ECHO not in capture.report().ports()


def test_a_server_that_never_answers_holds_up_nobody_else(wire, serve):
    server = serve(mode="stall")
    waiting = wire.curl.spawn_tool("exchange", wire.peer.ipv4, ECHO, "--send", 1, "--timeout", 60)
    wait_for(lambda: server.requests, 10, "the request has arrived")
    assert wire.reaches(wire.curl, wire.server)
    waiting.kill()
