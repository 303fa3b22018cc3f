"""The agents' figures against the servers' own logs: they must be equal, on both sides."""

import os
import shutil
import subprocess

import pytest

import programs
from lab import Lab
from mesh import ECHO, Mesh
from waiting import wait_for

LABELS = {
    "reporter", "source_workload", "source_workload_namespace", "source_principal", "source_app", "source_version",
    "source_cluster", "source_canonical_service", "source_canonical_revision", "destination_workload",
    "destination_workload_namespace", "destination_principal", "destination_app", "destination_version",
    "destination_cluster", "destination_canonical_service", "destination_canonical_revision", "destination_service",
    "destination_service_name", "destination_service_namespace", "request_protocol", "response_flags",
    "connection_security_policy",
}


@pytest.fixture(scope="module")
def mesh():
    with Lab() as lab:
        made = Mesh(lab)
        made.nginx = {pod.name: programs.nginx(pod, files={"big": os.urandom(1 << 20)})
                      for pod in (made.server, made.neighbour)}
        yield made


def totals(node, reporter, client, server):
    """(opened, closed, from client, to client) of one pair as one side reports it."""
    page = node.metrics()
    pair = {"reporter": reporter, "source_principal": client.identity, "destination_principal": server.identity,
            "destination_version": server.object["metadata"]["labels"].get("version", "unknown")}
    return tuple(page.sum(f"istio_tcp_{what}_total", **pair)
                 for what in ("connections_opened", "connections_closed", "received_bytes", "sent_bytes"))


@pytest.mark.parametrize("server", ["server", "neighbour"])
def test_bytes_and_connections_equal_the_servers_log_on_both_sides(mesh, server):
    target = getattr(mesh, server)
    for _ in range(5):
        mesh.client.run(["curl", "-sSf", "-o", "/dev/null", f"http://{target.ipv4}/big", f"http://{target.ipv4}/"])
    log = programs.nginx_log(mesh.nginx[server], 10)
    expected = (5, 5, sum(line["received"] for line in log), sum(line["sent"] for line in log))
    for node, reporter in ((mesh.node1, "source"), (target.node, "destination")):
        wait_for(lambda node=node, reporter=reporter: totals(node, reporter, mesh.client, target) == expected, 10,
                 lambda node=node, reporter=reporter: (
                     f"{reporter} counts {expected}, but it has {totals(node, reporter, mesh.client, target)}"))


def test_bytes_show_while_a_connection_lives(mesh):
    server = programs.podtool(mesh.other, 9100, "source:5000000")
    mesh.client.spawn_tool("exchange", mesh.other.ipv4, 9100, "--half-close", "--timeout", 60)
    wait_for(lambda: totals(mesh.node1, "source", mesh.client, mesh.other)[3] >= 5000000, 10, "bytes in the series")
    server.stop()


def test_series_carry_istio_s_labels_and_say_whether_it_was_encrypted(mesh):
    mesh.wait_reaches(mesh.client, mesh.server)
    mesh.wait_reaches(mesh.client, mesh.neighbour)
    mesh.wait_reaches(mesh.outsider, mesh.server)
    page = mesh.node1.metrics()
    far, = page.select("istio_tcp_connections_opened_total", reporter="source", destination_version="v2",
                       source_principal=mesh.client.identity, response_flags="-",
                       destination_service=lambda value: value != "nonsense", destination_app="web")[:1]
    assert LABELS <= set(far.labels), LABELS - set(far.labels)
    assert far.labels["connection_security_policy"] == "mutual_tls"
    assert far.labels["request_protocol"] == "tcp" and far.labels["source_app"] == "client"
    near = page.select("istio_tcp_connections_opened_total", destination_version="v1",
                       source_principal=mesh.client.identity)
    assert {s.labels["reporter"] for s in near} == {"source", "destination"}
    assert {s.labels["connection_security_policy"] for s in near} == {"none"}
    plain = mesh.node2.metrics().select("istio_tcp_connections_opened_total", reporter="destination",
                                        destination_version="v2", source_principal="unknown")
    assert plain and {s.labels["connection_security_policy"] for s in plain} == {"none"}


def test_the_mesh_s_own_metrics_are_there(mesh):
    mesh.wait_reaches(mesh.client, mesh.server)
    for node in (mesh.node1, mesh.node2):
        wait_for(lambda node=node: node.metrics().select("nodemesh_kernel_events_total"), 10, "the kernel's counters")
        page = node.metrics()
        for name in ("nodemesh_connections_open", "nodemesh_connections_total", "nodemesh_tls_handshakes_total",
                     "nodemesh_certificate_expiry_seconds", "nodemesh_config_generation", "nodemesh_config_age_seconds",
                     "nodemesh_kernel_events_total", "nodemesh_build_info"):
            assert page.select(name), f"{name} is missing on {node.name}"
    identities = {s.labels["identity"] for s in mesh.node2.metrics().select("nodemesh_certificate_expiry_seconds")}
    assert mesh.server.identity in identities


def test_promtool_finds_nothing_wrong_with_the_page(mesh):
    promtool = shutil.which("promtool")
    done = subprocess.run([promtool, "check", "metrics"], input=mesh.node1.metrics().text, text=True,
                          capture_output=True, check=False)
    findings = [line for line in (done.stdout + done.stderr).splitlines() if "istio_build" not in line and line]
    assert not findings, "\n".join(findings)


def test_kernel_counters_agree_with_what_was_captured(mesh):
    def captured():
        return mesh.node1.metrics().sum("nodemesh_kernel_events_total", event="captured")

    wait_for(lambda: captured() >= 0, 5)
    before = captured()
    for _ in range(10):
        assert mesh.reaches(mesh.client, mesh.server)
    wait_for(lambda: captured() - before >= 10, 10, lambda: f"10 more than {before}, not {captured()}")


def test_plaintext_refused_by_the_application_is_no_success(mesh):
    with mesh.expect_reason(mesh.node2, "CONNECT_REFUSED", direction="inbound"):
        mesh.attempt(mesh.client, mesh.server, 4242)
    failed = mesh.node1.metrics().sum("istio_tcp_connections_failed_total", reporter="source",
                                      source_principal=mesh.client.identity)
    assert failed >= 1 and ECHO
