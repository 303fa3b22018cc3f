"""Envoy at the other end, in both roles."""

import pytest

import certificates
import envoy
import programs
from manifests import authorization_policy, from_principal
from mesh import ECHO
from waiting import wait_for


def test_envoy_as_client_and_envoy_as_server_understand_each_other(lab):
    authority = certificates.Authority.stranger(f"{lab.dir}/certificates", "root")
    here, there = lab.node("node1").pod("client"), lab.node("node2").pod("server")
    mine, theirs = (authority.issue(f"spiffe://cluster.local/ns/default/sa/{n}") for n in ("client", "server"))
    programs.podtool(there, ECHO, "echo")
    envoy.server(there, authority, theirs, ECHO)
    envoy.client(here, 10001, there.ipv4, f"{there.ipv4}:{ECHO}", authority, mine)
    with lab.capture(here.node) as capture:
        result = here.tool("exchange", "127.0.0.1", 10001, "--send", 1 << 20, "--half-close", "--timeout", 30)
    assert result["received"] == 1 << 20 and result["how"] == "fin", result
    capture.report().require_hbone_only()


@pytest.fixture
def through(wire):
    """A port of the peer pod at which an Envoy of its own carries connections to the server pod's echo."""
    process = envoy.client(wire.peer, 10001, wire.server.ipv4, wire.target, wire.authority, wire.good)
    yield 10001
    process.stop()


@pytest.fixture
def behind(wire):
    """The peer pod serves: its Envoy terminates HBONE in front of an echo server."""
    echo = programs.podtool(wire.peer, ECHO, "echo")
    process = envoy.server(wire.peer, wire.authority, wire.good, ECHO)
    yield
    process.stop()
    echo.stop()


@pytest.mark.parametrize("size", [1, 100000, 20 << 20])
def test_envoy_as_client_is_served(wire, through, size):
    result = wire.peer.tool("exchange", "127.0.0.1", through, "--send", size, "--half-close", "--timeout", 60)
    assert result["received"] == size and result["how"] == "fin", result
    entry = wire.log_entry(wire.node2, direction="inbound", path_kind="hbone", src__identity=wire.peer.identity)
    assert entry["dst.identity"] == wire.server.identity


def test_envoy_as_client_is_subject_to_policy(wire, through):
    with wire.objects(authorization_policy("deny", "shop", "DENY", [from_principal(wire.peer.principal)])):
        result = wire.peer.tool("exchange", "127.0.0.1", through, "--send", 1)
        assert result["received"] == 0
    wait_for(lambda: wire.peer.tool("exchange", "127.0.0.1", through, "--send", 1)["how"] == "complete", 10)


def test_a_thousand_connections_of_envoy_share_tunnels(wire, through):
    many = wire.peer.spawn_tool("many", "127.0.0.1", through, 900)
    many.wait_output('"many"', 60)
    assert programs.events(many, "many")[0]["outcomes"].get("ok") == 900, many.output()


@pytest.mark.parametrize("size", [1, 100000, 20 << 20])
def test_envoy_as_server_is_reached(wire, behind, size):
    with wire.lab.capture(wire.node1) as capture:
        result = wire.client.tool("exchange", wire.peer.ipv4, ECHO, "--send", size, "--half-close", "--timeout", 60)
    assert result["received"] == size and result["how"] == "fin", result
    capture.report().require_hbone_only()


def test_half_closes_and_resets_travel_through_envoy(wire, behind):
    session = wire.client.spawn_tool("session", wire.peer.ipv4, ECHO)
    session.wait_output('"open"')
    assert envoy.stats(wire.peer, 19002).get("http.http.downstream_rq_total", 0) >= 1
    session.kill()
    wait_for(lambda: envoy.stats(wire.peer, 19002).get("http.http.downstream_rq_active") == 0, 10, "the stream is over")


def test_many_connections_to_envoy_share_tunnels_within_its_limit(wire, behind):
    many = wire.client.spawn_tool("many", wire.peer.ipv4, ECHO, 500)
    many.wait_output('"many"', 60)
    assert programs.events(many, "many")[0]["outcomes"].get("ok") == 500, many.output()
    assert envoy.stats(wire.peer, 19002)["http.http.downstream_cx_total"] <= 12


def test_a_stopping_envoy_is_left_for_a_new_tunnel(wire, behind):
    assert wire.client.tool("exchange", wire.peer.ipv4, ECHO, "--send", 1)["how"] == "complete"
    wire.peer.run(["curl", "-sS", "-X", "POST", "http://127.0.0.1:19002/drain_listeners?graceful"])
    result = wire.client.tool("exchange", wire.peer.ipv4, ECHO, "--send", 1)
    assert result["how"] in ("complete", "ECONNRESET"), result
