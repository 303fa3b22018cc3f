"""Pods whose objects name no network namespace: it is found by their cgroups and processes, as on Kubernetes."""

import copy
import os

import pytest

import manifests
import netns
import programs
from lab import Lab
from mesh import ECHO, Mesh
from waiting import wait_for

attempt = Mesh.attempt


def reaches(client, server):
    return attempt(client, server)["how"] == "complete"


def netns_of(pid):
    """The inode of a process's network namespace; 0 when it has ended."""
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return 0


def over_hbone(node):
    return node.metrics().sum("istio_tcp_connections_opened_total", reporter="source",
                              connection_security_policy="mutual_tls")


@pytest.fixture(scope="module")
def found():
    """Two pods in the mesh that nobody names, and a third whose object follows."""
    with Lab() as lab:
        node1, node2 = lab.node("node1"), lab.node("node2")
        client = node1.pod("client", "shop", "curl", named=False)
        server = node2.pod("server", "shop", "web", named=False)
        programs.podtool(server, ECHO, "echo")
        lab.apply(manifests.peer_authentication("default", "shop", "STRICT"))
        lab.start()
        yield lab, client, server


def test_pods_are_enrolled_by_their_cgroups_alone(found):
    lab, client, server = found
    before = over_hbone(client.node)
    wait_for(lambda: reaches(client, server), 20, "the client reaches the server")
    wait_for(lambda: over_hbone(client.node) > before, 10, "a connection over mutual TLS")


def test_a_sandbox_that_is_made_anew_is_found_again(found):
    _, client, server = found
    wait_for(lambda: reaches(client, server), 20, "the client reaches the server")
    old = os.stat(f"/proc/{server.pause.pid}/ns/net").st_ino
    server.end_sandbox()
    server.create()
    programs.podtool(server, ECHO, "echo")
    assert os.stat(f"/proc/{server.pause.pid}/ns/net").st_ino != old
    wait_for(lambda: reaches(client, server), 20, "the client reaches the server in its new sandbox")


def test_a_pod_goes_on_when_the_process_it_was_found_by_ends(found):
    _, client, server = found
    client.pause.stop()
    for _ in range(10):  # longer than the warden's poll
        assert reaches(client, server)
    client.pause = client.spawn(["sleep", "infinity"])


def test_a_pod_is_in_the_mesh_before_its_status_names_an_address(found):
    lab, client, server = found
    young = client.node.pod("young", "shop", "curl", named=False, apply=False)
    thing = copy.deepcopy(young.object)
    thing["status"] = {"phase": "Pending"}
    lab.apply(thing)
    wait_for(lambda: reaches(young, server), 20, "the young pod reaches the server, which is STRICT")
    lab.apply(young.object)
    wait_for(lambda: reaches(client, server) and reaches(young, server), 20, "both reach the server")
    young.remove()


def test_a_process_in_the_nodes_namespace_enrols_nobody(found):
    lab, client, _ = found
    node = client.node
    thing = manifests.pod("hidden", "shop", node.name, "11111111-2222-3333-4444-555555555555", [node.ipv4], None)
    group = f"{node.kubepods}/besteffort/pod{thing['metadata']['uid']}/app"
    os.makedirs(group)
    process = node.spawn(["sleep", "infinity"])
    with open(f"{group}/cgroup.procs", "w", encoding="ascii") as procs:
        procs.write(str(process.pid))
    lab.apply(thing)
    wait_for(lambda: "node's own network namespace" in node.agent.output(), 10, "the reason in the log")
    process.stop()
    lab.delete(thing)


def test_a_pod_in_hundreds_of_network_namespaces_is_refused_and_holds_nobody_up(found):
    lab, client, server = found
    crowd = client.node.pod("crowd", "shop", "curl", named=False, apply=False)
    crowd.spawn(["sh", "-c", "for i in $(seq 300); do unshare --net sleep infinity & done; wait"])

    def namespaces():
        with open(f"{crowd.cgroup}/app/cgroup.procs", encoding="ascii") as pids:
            return {netns_of(int(pid)) for pid in pids}

    wait_for(lambda: len(namespaces()) > 300, 30, "the crowd's namespaces")
    lab.apply(crowd.object)
    wait_for(lambda: "more than 256 network namespaces" in client.node.agent.output(), 20, "the reason in the log")
    young = client.node.pod("late", "shop", "curl", named=False)
    wait_for(lambda: reaches(young, server), 20, "a pod that came later reaches the server")
    for pod in (young, crowd):
        pod.remove()
