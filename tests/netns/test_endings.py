"""How connections end. An end that was clean stays clean, an abrupt one abrupt: truncation must not look complete."""

import pytest

import programs
from mesh import ECHO
from waiting import wait_for

PATHS = ["far", "near", "plaintext"]


@pytest.fixture(params=PATHS)
def ends(request, mesh):
    """(client, server) over HBONE, within a node, and from a client outside of the mesh."""
    return {"far": (mesh.client, mesh.server), "near": (mesh.client, mesh.neighbour),
            "plaintext": (mesh.outsider, mesh.server)}[request.param]


@pytest.fixture
def serve(ends):
    started = []

    def start(mode, port=9000):
        started.append(programs.podtool(ends[1], port, mode))
        return started[-1]

    yield start
    for process in started:
        process.stop()


def test_the_client_may_finish_first_and_still_read_the_answer(ends, serve):
    serve("sink")
    result = ends[0].tool("exchange", ends[1].ipv4, 9000, "--send", 1 << 20, "--half-close")
    assert result["how"] == "fin" and '"received": 1048576' in result["head"], result


def test_the_server_may_finish_first_and_still_read_the_request(ends, serve):
    server = serve("source:300000")
    result = ends[0].tool("exchange", ends[1].ipv4, 9000, "--send", 200000, "--half-close")
    assert result["received"] == 300000 and result["how"] == "fin", result
    wait_for(lambda: programs.events(server, "end"), 10, "the server saw the end")
    end = programs.events(server, "end")[0]
    assert end["received"] == 200000 and end["how"] == "fin", end


def test_a_server_that_resets_is_seen_as_a_reset(ends, serve):
    serve("reset")
    result = ends[0].tool("exchange", ends[1].ipv4, 9000, "--send", 10)
    assert result["how"] == "ECONNRESET" and result["received"] == 0, result


def test_a_client_that_resets_is_seen_as_a_reset(ends, serve):
    server = serve("banner:220 hello")
    ends[0].tool("exchange", ends[1].ipv4, 9000, "--first", "--send", 10, "--reset")
    wait_for(lambda: programs.events(server, "end"), 10, "the server saw the end")
    assert programs.events(server, "end")[0]["how"] == "ECONNRESET"


def test_a_server_that_is_killed_midway_is_no_clean_end(ends, serve):
    server = serve("echo")
    session = ends[0].spawn_tool("session", ends[1].ipv4, 9000)
    session.wait_output('"open"')
    server.kill()
    session.wait_output('"session"')
    assert programs.events(session, "session")[0]["how"] in ("ECONNRESET", "fin"), session.output()
    session.stop()


def test_the_server_may_speak_first(ends, serve):
    serve("banner:220 ready")
    result = ends[0].tool("exchange", ends[1].ipv4, 9000, "--first", "--send", 20)
    assert result["head"].startswith("220 ready\r\n") and result["how"] == "complete", result


def test_megabytes_arrive_whole_in_both_directions(ends, serve):
    server = serve("echo")
    result = ends[0].tool("exchange", ends[1].ipv6, 9000, "--send", 8 << 20, "--half-close", "--timeout", 60)
    assert result["received"] == 8 << 20 and result["how"] == "fin", result
    wait_for(lambda: programs.events(server, "end"), 10, "the server saw the end")
    assert programs.events(server, "end")[0]["crc"] == result["crc"]


def test_a_port_that_nobody_listens_on_ends_in_a_reset(mesh):
    with mesh.expect_reason(mesh.node1, "TUNNEL_REFUSED", direction="outbound"):
        with mesh.expect_reason(mesh.node2, "CONNECT_REFUSED", direction="inbound"):
            result = mesh.client.tool("exchange", mesh.server.ipv4, 9999, "--send", 1)
    assert result["how"] == "ECONNRESET", result
    with mesh.expect_reason(mesh.node1, "CONNECT_REFUSED"):
        assert mesh.client.tool("exchange", mesh.neighbour.ipv4, 9999, "--send", 1)["how"] == "ECONNRESET"


def test_an_address_without_a_route_ends_in_a_reset_that_is_explained(mesh):
    with mesh.expect_reason(mesh.node1, "CONNECT_FAILED", direction="outbound"):
        result = mesh.client.tool("exchange", "198.51.100.1", 80, "--send", 1)
    assert result["how"] in ("ECONNRESET", "ENETUNREACH", "EHOSTUNREACH"), result


@pytest.mark.parametrize("port", [15008, 15020, 15021, 61000])
def test_the_mesh_does_not_answer_on_its_own_ports_from_inside_a_pod(mesh, port):
    """Dialling another pod's 15008 by hand or a capture port must neither loop nor hang, and others are served."""
    result = mesh.client.tool("exchange", mesh.server.ipv4, port, "--send", 1, "--timeout", 5)
    assert result["how"] in ("ECONNRESET", "ECONNREFUSED", "fin"), result
    assert result["received"] == 0
    own = mesh.client.tool("exchange", mesh.client.ipv4, port, "--send", 1, "--timeout", 5)
    assert own["how"] in ("ECONNRESET", "ECONNREFUSED"), own
    assert mesh.reaches(mesh.client, mesh.server)


def test_a_client_that_vanishes_leaves_no_connection_behind(mesh):
    session = mesh.client.spawn_tool("session", mesh.server.ipv4, ECHO)
    session.wait_output('"open"')
    session.kill()
    for node in (mesh.node1, mesh.node2):
        wait_for(lambda node=node: node.metrics().sum("nodemesh_connections_open") == 0, 10, "no open connection")
