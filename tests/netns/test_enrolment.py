"""Pods join and leave the mesh while they run, by labels, in both directions and without a restart."""

import copy
import os
import signal

import pytest

import manifests
import programs
from mesh import ECHO
from waiting import wait_for

STRICT = manifests.peer_authentication("default", "shop", "STRICT")


def labelled(pod, mode):
    """The pod's object with the mesh label set to mode, or without it."""
    thing = copy.deepcopy(pod.object)
    labels = thing["metadata"].setdefault("labels", {})
    labels.pop("istio.io/dataplane-mode", None)
    if mode:
        labels["istio.io/dataplane-mode"] = mode
    return thing


@pytest.fixture
def strict(mesh):
    with mesh.objects(STRICT):
        mesh.wait_refused(mesh.outsider, mesh.server)
        yield mesh


def test_a_client_that_opts_out_becomes_plaintext_and_back(strict):
    mesh = strict
    mesh.apply(labelled(mesh.client, "none"))
    mesh.wait_refused(mesh.client, mesh.server)
    mesh.apply(labelled(mesh.client, None))
    mesh.wait_reaches(mesh.client, mesh.server)


def test_a_pod_can_join_although_its_namespace_does_not(strict):
    mesh = strict
    mesh.apply(labelled(mesh.outsider, "ambient"))
    mesh.wait_reaches(mesh.outsider, mesh.server)
    mesh.apply(labelled(mesh.outsider, None))
    mesh.wait_refused(mesh.outsider, mesh.server)


def test_an_outsiders_plaintext_never_completes_while_the_servers_enrolment_is_lost(strict):
    mesh = strict
    well = mesh.server.object
    elsewhere, refused = copy.deepcopy(well), copy.deepcopy(well)
    elsewhere["metadata"]["annotations"][manifests.NETNS_ANNOTATION] = "/run/netns/nowhere"
    refused["spec"]["nodeName"] = ["not", "a", "name"]

    def stays_closed(how):
        for _ in range(25):  # from before the warden sees the change until long after
            assert mesh.attempt(mesh.outsider, mesh.server, timeout=2)["how"] != "complete", how
        assert not mesh.reaches(mesh.client, mesh.server), how

    def comes_back():
        mesh.lab.apply(well)
        mesh.wait_reaches(mesh.client, mesh.server)
        mesh.wait_refused(mesh.outsider, mesh.server)

    mesh.lab.apply(elsewhere)
    stays_closed("annotation that names no namespace")
    for pid in mesh.node2.agent_pids("nodemesh-warden", workers=True):
        os.kill(pid, signal.SIGKILL)
    stays_closed("annotation that names no namespace, for a new warden")
    comes_back()
    mesh.lab.delete(well)
    stays_closed("no Pod object")
    mesh.lab.apply(refused)  # a new object: there is no last good version to keep
    stays_closed("refused Pod object")
    comes_back()
    with mesh.lab.capture(mesh.node1) as capture:
        assert mesh.reaches(mesh.client, mesh.server)
    capture.report().require_hbone_only()


def test_a_whole_namespace_joins_and_leaves(strict):
    mesh = strict
    mesh.apply(manifests.namespace("legacy", manifests.AMBIENT))
    mesh.wait_reaches(mesh.outsider, mesh.server)
    with mesh.lab.capture(mesh.node1) as capture:
        mesh.wait_reaches(mesh.outsider, mesh.plain)
    capture.report().require_hbone_only()
    mesh.apply(manifests.namespace("legacy"))
    mesh.wait_refused(mesh.outsider, mesh.server)
    mesh.wait_reaches(mesh.outsider, mesh.plain)


def test_a_server_that_opts_out_is_dialled_as_it_is(mesh):
    mesh.apply(labelled(mesh.server, "none"))
    with mesh.lab.capture(mesh.node1) as capture:
        mesh.wait_reaches(mesh.client, mesh.server)
    assert ECHO in capture.report().ports()
    mesh.apply(labelled(mesh.server, None))
    mesh.wait_reaches(mesh.client, mesh.server)
    with mesh.lab.capture(mesh.node1) as capture:
        assert mesh.reaches(mesh.client, mesh.server)
    capture.report().require_hbone_only()


@pytest.mark.parametrize("leaves", ["client", "server"])
def test_connections_that_are_open_survive_joining_and_leaving(mesh, leaves):
    pod = getattr(mesh, leaves)
    session = mesh.client.spawn_tool("session", mesh.server.ipv4, ECHO)
    session.wait_output('"open"')
    mesh.apply(labelled(pod, "none"))
    mesh.wait_reaches(mesh.client, mesh.server)
    mesh.apply(labelled(pod, None))
    mesh.wait_reaches(mesh.client, mesh.server)
    assert not programs.events(session, "session"), session.output()
    session.stop()


def test_a_new_pod_is_in_the_mesh_and_a_removed_one_leaves_nothing(strict):
    mesh = strict
    made = mesh.node1.pod("made", "shop", "made", {"app": "made"})
    mesh.lab.apply(manifests.service_account("made", "shop"))
    mesh.wait_reaches(made, mesh.server)
    made.remove()
    for program in ("nodemesh-warden", "nodemesh-proxy"):
        for pid in mesh.node1.agent_pids(program):
            assert made.netns not in _netns_links(pid), program
    wait_for(lambda: made.identity not in {
        s.labels["identity"] for s in mesh.node1.metrics().select("nodemesh_certificate_expiry_seconds")}, 10,
        "the certificate of the gone pod is gone")
    again = mesh.node1.pod("made", "shop", "made", {"app": "made"})
    mesh.wait_reaches(again, mesh.server)
    again.remove()


def test_an_address_that_moves_to_another_pod_takes_no_identity_along(strict):
    mesh = strict
    first = mesh.node2.pod("first", "shop", "first", ipv4="10.244.2.200", ipv6=False)
    programs.podtool(first, 8080, "name:first")
    mesh.lab.apply(manifests.service_account("first", "shop"), manifests.service_account("second", "shop"))
    wait_for(lambda: mesh.client.tool("exchange", "10.244.2.200", 8080, "--half-close")["head"] == "first\r\n", 10)
    first.remove()
    second = mesh.node2.pod("second", "shop", "second", ipv4="10.244.2.200", ipv6=False)
    programs.podtool(second, 8080, "name:second")
    wait_for(lambda: mesh.client.tool("exchange", "10.244.2.200", 8080, "--half-close")["head"] == "second\r\n", 10)
    mesh.log_entry(mesh.node1, dst__addr="10.244.2.200:8080", dst__identity=second.identity, response_flags="-")
    second.remove()


def _netns_links(pid):
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
        except OSError:
            continue
    return " ".join(found)
