"""Unmodified programs through the mesh: what is on the wire, what the programs see, what the agents say of it."""

import os

import pytest

import programs
from mesh import ECHO, Mesh
from lab import Lab

FAMILIES = ["ipv4", "ipv6"]


@pytest.fixture(scope="module")
def mesh():
    with Lab() as lab:
        made = Mesh(lab)
        made.nginx = programs.nginx(made.server, files={"big": os.urandom(3 << 20)})
        made.postgres = programs.postgres(made.server)
        made.redis = programs.redis(made.server)
        made.mail = programs.smtp(made.server)
        made.iperf = programs.iperf_server(made.server)
        yield made


def curl(mesh, host):
    url = f"[{host}]" if ":" in host else host
    assert len(mesh.client.run(["curl", "-sSf", f"http://{url}/big"], text=False).stdout) == 3 << 20
    seen = mesh.client.run(["curl", "-sS", f"http://{url}/whoami"]).stdout.strip()
    return seen, b"GET /big HTTP"


def psql(mesh, host):
    query = "select inet_client_addr(), 'marker-of-the-query' from generate_series(1, 10000)"
    lines = mesh.client.run(["psql", "-h", host, "-U", "postgres", "-Atc", query]).stdout.splitlines()
    assert len(lines) == 10000
    return programs.postgres_clients(mesh.postgres, 1)[-1], b"marker-of-the-query"


def redis(mesh, host):
    value = "marker-of-the-value" * 5000
    call = ["redis-cli", "-h", host]
    assert mesh.client.run([*call, "-x", "set", "key"], input=value).stdout.strip() == "OK"
    assert mesh.client.run([*call, "get", "key"]).stdout.strip() == value
    return programs.redis_clients(mesh.redis, 1)[-1], b"marker-of-the-value"


def smtp(mesh, host):
    programs.send_mail(mesh.client, host, "marker-of-the-mail\n")
    return programs.smtp_clients(mesh.mail, 1)[-1], b"marker-of-the-mail"


def iperf(mesh, host):
    for reverse in (False, True):
        result = programs.iperf(mesh.client, host, "16M", streams=2, reverse=reverse)
        assert result["end"]["sum_sent"]["bytes"] >= 16 << 20
        peer = result["start"]["connected"][0]
    assert peer["remote_host"] == host and peer["local_host"] in mesh.client.addresses
    return peer["local_host"], b"\0iperf3 has no plaintext to look for"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("program", [curl, psql, redis, iperf, smtp], ids=lambda f: f.__name__)
def test_a_real_program_works_and_only_hbone_is_on_the_wire(mesh, program, family):
    with mesh.lab.capture(mesh.node1) as capture:
        seen, plaintext = program(mesh, getattr(mesh.server, family))
    assert seen == getattr(mesh.client, family), "the server's own log names the real client"
    report = capture.report()
    report.require_hbone_only()
    assert not report.contains(plaintext)
    assert report.versions <= {"TLSv1.3"} and report.ciphers <= {"TLS_AES_128_GCM_SHA256"}


@pytest.mark.parametrize("family", FAMILIES)
def test_both_ends_see_the_addresses_they_would_see_without_a_mesh(mesh, family):
    there, here = getattr(mesh.server, family), getattr(mesh.client, family)
    result = mesh.client.tool("exchange", there, ECHO, "--send", 100)
    assert result["peer"] == [there, ECHO] and result["local"][0] == here
    accepted = programs.events(mesh.echo["server"], "accept")[-1]
    assert accepted["peer"][0].removeprefix("::ffff:") == here
    assert accepted["local"][0].removeprefix("::ffff:") == there and accepted["local"][1] == ECHO


@pytest.mark.parametrize("family", FAMILIES)
def test_a_connection_within_a_node_takes_the_shortcut_and_keeps_its_addresses(mesh, family):
    there = getattr(mesh.neighbour, family)
    with mesh.lab.capture(mesh.node1) as capture:
        result = mesh.client.tool("exchange", there, ECHO, "--send", 100000)
    assert result["how"] == "complete" and result["received"] == 100000
    accepted = programs.events(mesh.echo["neighbour"], "accept")[-1]
    assert accepted["peer"][0].removeprefix("::ffff:") == getattr(mesh.client, family)
    assert capture.report().payload_bytes < 10000, "nothing of it leaves the node, where tunnels only ping"
    entry = mesh.log_entry(mesh.node1, path_kind="same-node", dst__addr=_joined(there, ECHO))
    assert entry["src.identity"] == mesh.client.identity and entry["dst.identity"] == mesh.neighbour.identity


def test_the_access_log_names_both_identities_on_both_nodes(mesh):
    assert mesh.client.tool("exchange", mesh.server.ipv4, ECHO, "--send", 321)["how"] == "complete"
    address = _joined(mesh.server.ipv4, ECHO)
    for node, direction in ((mesh.node1, "outbound"), (mesh.node2, "inbound")):
        entry = mesh.log_entry(node, direction=direction, path_kind="hbone", dst__addr=address, bytes_sent=321)
        assert entry["src.identity"] == mesh.client.identity and entry["dst.identity"] == mesh.server.identity
        assert entry["tls_version"] == "TLSv1.3" and entry["tls_cipher"] == "TLS_AES_128_GCM_SHA256"
        assert entry["bytes_recv"] == 321


def test_what_is_known_to_be_outside_of_the_mesh_is_dialled_as_it_is(mesh):
    with mesh.lab.capture(mesh.node1) as capture:
        result = mesh.client.tool("exchange", mesh.plain.ipv4, ECHO, "--send", 1000)
    assert result["how"] == "complete"
    assert ECHO in capture.report().ports()
    mesh.log_entry(mesh.node1, path_kind="passthrough", dst__addr=_joined(mesh.plain.ipv4, ECHO))


def test_a_plaintext_client_is_served_without_identity_where_no_policy_forbids_it(mesh):
    assert mesh.reaches(mesh.outsider, mesh.server)
    entry = mesh.log_entry(mesh.node2, path_kind="plaintext", dst__addr=_joined(mesh.server.ipv4, ECHO))
    assert "src.identity" not in entry
    accepted = programs.events(mesh.echo["server"], "accept")[-1]
    assert accepted["peer"][0].removeprefix("::ffff:") == mesh.outsider.ipv4


def test_a_program_that_talks_to_its_own_address_is_left_alone(mesh):
    for address in ("127.0.0.1", "::1", *mesh.server.addresses):
        before = programs.events(mesh.echo["server"], "accept")
        assert mesh.server.tool("exchange", address, ECHO, "--send", 10)["how"] == "complete"
        peer = programs.events(mesh.echo["server"], "accept")[len(before)]["peer"][0]
        assert peer.removeprefix("::ffff:") == address


def test_connections_beyond_the_port_range_of_one_destination_are_spread(mesh):
    """One capture port would end at 28,000 connections; here it is enough to see that several ports are in use."""
    local = set()
    for port in (ECHO, 80, 6379, 5432, 5201):
        for pod in (mesh.server, mesh.other, mesh.plain):
            result = mesh.client.tool("exchange", pod.ipv4, port, "--timeout", 0.3)
            assert result["how"] != "EADDRNOTAVAIL"
            local.add(tuple(result.get("local", ())))
    assert len(local) > 5


def _joined(host, port):
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def test_an_application_that_binds_a_loopback_address_is_still_seen_as_its_pod(mesh):
    server = programs.nginx(mesh.neighbour, 8099)
    url = f"http://{mesh.neighbour.ipv4}:8099/whoami"
    answer = mesh.client.run(["curl", "-sSf", "--interface", "127.0.0.1", url]).stdout
    assert answer.strip() == mesh.client.ipv4, "the server must not take a neighbour for a local program"
    server.stop()
