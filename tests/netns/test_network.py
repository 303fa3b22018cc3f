"""A bad network between the nodes: loss, partition, a node that is gone."""

import pytest

import netns
import programs
from lab import Lab
from mesh import ECHO, Mesh
from waiting import wait_for

PINGS = ("--", "--ping-interval-ms", "300", "--ping-timeout-ms", "1000")


@pytest.fixture
def pinged():
    """A mesh whose tunnels are pinged often, so that a test need not wait half a minute."""
    with Lab() as lab:
        made = Mesh(lab, start=False)
        lab.start(extra=PINGS)
        yield made


def nft(node, rule=""):
    """Makes the rule the only one of the node, for what it takes in and for what it forwards; no rule: none."""
    chains = "".join(f"chain {hook} {{\ntype filter hook {hook} priority 0;\n{rule}\n}}\n" for hook in ("input", "forward"))
    node.run(["nft", "-f", "-"], input=f"flush ruleset\ntable inet bad {{\n{chains}}}\n")


def test_bytes_arrive_whole_through_a_link_that_loses_packets(mesh):
    server = programs.podtool(mesh.server, 9500, "echo")
    for node in (mesh.node1, mesh.node2):
        nft(node, 'iifname "eth0" numgen random mod 100 < 2 drop')
    result = mesh.client.tool("exchange", mesh.server.ipv4, 9500, "--send", 4 << 20, "--half-close", "--timeout", 60,
                              timeout=90)
    for node in (mesh.node1, mesh.node2):
        nft(node)
    assert result["received"] == 4 << 20 and result["how"] == "fin", result
    wait_for(lambda: programs.events(server, "end"), 10, "the server saw the end")
    assert programs.events(server, "end")[0]["crc"] == result["crc"]


def test_connections_over_a_dead_link_are_reset_and_come_back_with_the_link(pinged):
    mesh = pinged
    session = mesh.client.spawn_tool("session", mesh.server.ipv4, ECHO)
    session.wait_output('"open"')
    with mesh.expect_reason(mesh.node1, "PING_TIMEOUT"):
        netns.ip(mesh.node2.netns, "link set eth0 down\n")
        session.wait_output('"session"', 15)
    assert programs.events(session, "session")[0]["how"] == "ECONNRESET"
    assert mesh.reaches(mesh.client, mesh.neighbour), "what stays on the node is not touched"
    netns.ip(mesh.node2.netns, f"link set eth0 up\nroute add 10.244.1.0/24 via {mesh.node1.ipv4}\n"
                               f"addr add {mesh.node2.ipv6}/64 dev eth0 nodad\n"
                               f"route add fd00:244:1::/64 via {mesh.node1.ipv6}\n")
    mesh.wait_reaches(mesh.client, mesh.server, seconds=20)


def test_a_short_break_of_the_link_breaks_no_connection(mesh):
    session = mesh.client.spawn_tool("session", mesh.server.ipv4, ECHO)
    session.wait_output('"open"')
    nft(mesh.node2, 'iifname "eth0" drop')
    assert mesh.attempt(mesh.client, mesh.server, timeout=1)["how"] == "timeout"
    nft(mesh.node2)
    mesh.wait_reaches(mesh.client, mesh.server)
    assert not programs.events(session, "session"), session.output()
    session.stop()
