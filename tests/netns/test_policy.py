"""PeerAuthentication and AuthorizationPolicy, enforced at the server's node and on live connections."""

import contextlib

import pytest

import manifests
import programs
from manifests import authorization_policy, from_principal, peer_authentication
from mesh import ECHO
from waiting import wait_for


@contextlib.contextmanager
def live(client, server, port=ECHO):
    """A connection that exchanges bytes for as long as it is let; yields its process."""
    process = client.spawn_tool("session", server.ipv4, port)
    try:
        process.wait_output('"open"')
        yield process
    finally:
        process.stop()


def wait_broken(process):
    process.wait_output('"session"')
    return programs.events(process, "session")[0]["how"]


def test_strict_refuses_plaintext_and_serves_the_mesh(mesh):
    assert mesh.reaches(mesh.outsider, mesh.server)
    with mesh.objects(peer_authentication("default", "shop", "STRICT")):
        with mesh.expect_reason(mesh.node2, "STRICT_PLAINTEXT", path="plaintext"):
            mesh.wait_refused(mesh.outsider, mesh.server)
        assert mesh.reaches(mesh.client, mesh.server) and mesh.reaches(mesh.client, mesh.neighbour)
    mesh.wait_reaches(mesh.outsider, mesh.server)


def test_the_narrower_peer_authentication_wins(mesh):
    extra = programs.podtool(mesh.server, 8080, "echo")
    with mesh.objects(peer_authentication("default", "istio-system", "STRICT"),
                      peer_authentication("open", "shop", "PERMISSIVE", {"version": "v2"}, {ECHO: "STRICT"})):
        mesh.wait_refused(mesh.outsider, mesh.server)
        mesh.wait_reaches(mesh.outsider, mesh.server, 8080)
        mesh.wait_refused(mesh.outsider, mesh.neighbour)
    extra.stop()


def test_strict_closes_plaintext_connections_that_are_open(mesh):
    with live(mesh.outsider, mesh.server) as kept, live(mesh.client, mesh.server) as mutual:
        with mesh.objects(peer_authentication("default", "shop", "STRICT")):
            assert wait_broken(kept) == "ECONNRESET"
            assert mutual.running and not programs.events(mutual, "session")


@pytest.mark.parametrize("server", ["server", "neighbour"])
def test_a_deny_policy_refuses_whom_it_names_and_nobody_else(mesh, server):
    target = getattr(mesh, server)
    node = target.node
    deny = authorization_policy("deny", "shop", "DENY", [from_principal(mesh.client.principal)])
    with mesh.objects(deny):
        with mesh.expect_reason(node, "POLICY_DENY"):
            mesh.wait_refused(mesh.client, target)
        assert mesh.reaches(mesh.outsider, target), "no identity, so the rule cannot match"
    mesh.wait_reaches(mesh.client, target)


@pytest.mark.parametrize("server", ["server", "neighbour"])
def test_an_allow_policy_refuses_whom_it_does_not_name(mesh, server):
    target = getattr(mesh, server)
    allow = authorization_policy("allow", "shop", "ALLOW", [from_principal(mesh.client.principal)], {"app": "web"})
    with mesh.objects(allow):
        with mesh.expect_reason(target.node, "POLICY_NO_ALLOW"):
            mesh.wait_refused(mesh.outsider, target)
        assert mesh.reaches(mesh.client, target)
        assert mesh.reaches(mesh.outsider, mesh.other), "another workload"


@pytest.mark.parametrize("server", ["server", "neighbour"])
def test_a_policy_change_closes_live_connections_that_are_now_denied(mesh, server):
    target = getattr(mesh, server)
    with live(mesh.client, target) as denied, live(mesh.other, target) as kept:
        deny = authorization_policy("deny", "shop", "DENY", [from_principal(mesh.client.principal)])
        with mesh.expect_reason(target.node, "POLICY_REVOKED"), mesh.objects(deny):
            assert wait_broken(denied) == "ECONNRESET"
            assert not programs.events(kept, "session"), "whom the policy does not name stays connected"
            before = len(programs.events(mesh.echo[target.name], "end"))
        assert kept.running and before >= 1
    mesh.wait_reaches(mesh.client, target)


def test_a_policy_that_still_allows_leaves_live_connections_alone(mesh):
    with live(mesh.client, mesh.server) as session:
        allow = authorization_policy("allow", "shop", "ALLOW", [from_principal(mesh.client.principal)])
        with mesh.objects(allow):
            assert mesh.reaches(mesh.client, mesh.server)
            assert not programs.events(session, "session")


def test_an_allow_policy_without_rules_allows_nothing(mesh):
    with mesh.objects(authorization_policy("nothing", "shop", "ALLOW")):
        mesh.wait_refused(mesh.client, mesh.server)
        mesh.wait_refused(mesh.client, mesh.neighbour)


def test_rules_look_at_ports_namespaces_and_addresses(mesh):
    extra = programs.podtool(mesh.server, 8080, "echo")
    rules = [{"from": [{"source": {"namespaces": ["shop"]}}], "to": [{"operation": {"ports": [str(ECHO)]}}]},
             {"from": [{"source": {"ipBlocks": [f"{mesh.outsider.ipv4}/32"]}}],
              "to": [{"operation": {"ports": ["8080"]}}]}]
    with mesh.objects(authorization_policy("mixed", "shop", "ALLOW", rules, {"version": "v2"})):
        mesh.wait_refused(mesh.outsider, mesh.server)
        mesh.wait_refused(mesh.client, mesh.server, 8080)
        assert mesh.reaches(mesh.client, mesh.server) and mesh.reaches(mesh.outsider, mesh.server, 8080)
    extra.stop()


def test_a_policy_of_the_root_namespace_applies_everywhere(mesh):
    rules = [{"from": [{"source": {"namespaces": ["nowhere"]}}]}]
    with mesh.objects(authorization_policy("all", "istio-system", "ALLOW", rules)):
        mesh.wait_refused(mesh.client, mesh.server)
        mesh.wait_refused(mesh.client, mesh.neighbour)
    mesh.wait_reaches(mesh.client, mesh.server)


def test_a_dry_run_policy_only_counts(mesh):
    deny = authorization_policy("trial", "shop", "DENY", [from_principal(mesh.client.principal)], dry_run=True)
    with mesh.objects(deny):
        assert mesh.reaches(mesh.client, mesh.server)
        wait_for(lambda: mesh.node2.metrics().sum("nodemesh_policy_dry_run_total", policy="shop/trial", result="deny"),
                 10, "the verdict of the dry run is counted")


def test_a_port_that_nobody_serves_tells_a_denied_client_nothing(mesh):
    deny = authorization_policy("deny", "shop", "DENY", [from_principal(mesh.client.principal)])
    with mesh.objects(deny):
        mesh.wait_refused(mesh.client, mesh.server)
        with mesh.expect_reason(mesh.node2, "POLICY_DENY"):
            mesh.client.tool("exchange", mesh.server.ipv4, 9999, "--send", 1)


def test_a_denial_says_who_was_denied_and_by_which_policy(mesh):
    deny = authorization_policy("deny-curl", "shop", "DENY", [from_principal(mesh.client.principal)])
    with mesh.objects(deny):
        mesh.wait_refused(mesh.client, mesh.server)
        entry = mesh.log_entry(mesh.node2, connection_termination_details="POLICY_DENY", policy="shop/deny-curl")
        assert entry["src.identity"] == mesh.client.identity


def test_kubelet_probes_pass_under_strict_and_other_host_processes_do_not(own_mesh):
    mesh = own_mesh
    probed = mesh.node2.pod("probed", "shop", "web", {"app": "probed"}, ports=[8080], probes=[8080])
    programs.podtool(probed, 8080, "echo")
    programs.podtool(probed, 8081, "echo")
    mesh.apply(peer_authentication("default", "shop", "STRICT"))
    mesh.wait_refused(mesh.outsider, probed, 8080)

    def probe(group, port):
        word = f"import socket; s=socket.create_connection(('{probed.ipv4}', {port}), 5); s.send(b'x'); print(s.recv(1))"
        return mesh.node2.run(["/usr/bin/python3", "-c", word], group=group, check=False).returncode == 0

    wait_for(lambda: probe("kubelet", 8080), 10, "a probe from the kubelet's cgroup passes")
    assert not probe("system", 8080), "another process of the host is not exempt"
    assert not probe("kubelet", 8081), "the kubelet itself only on the pod's probe ports"
