"""Manifests that are broken, repaired, many or gone: the last good version stays in force and the fault is named."""

import os
import shutil

import pytest

import manifests
from manifests import authorization_policy, from_principal
from waiting import wait_for

GOOD = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny-curl, namespace: shop}
spec:
  action: DENY
  rules:
  - from:
    - source: {principals: [cluster.local/ns/shop/sa/curl]}
"""
BROKEN = {
    "not YAML": ("spec: [", None),
    "a duplicate key": (GOOD.replace("  action: DENY", "  action: DENY\n  action: ALLOW"), "action"),
    "a wrong type": (GOOD.replace("[cluster.local/ns/shop/sa/curl]", "7"), "principals"),
    "an unknown enumerator": (GOOD.replace("DENY", "REFUSE"), "action"),
    "an invalid CIDR": (GOOD.replace("principals: [cluster.local/ns/shop/sa/curl]", "ipBlocks: [10.0.0.0/99]"),
                        "ipBlocks"),
}
FILE = "policy.yaml"


def said(mesh, *words):
    """Waits until every agent's log has one line with all the words."""
    for node in (mesh.node1, mesh.node2):
        wait_for(lambda node=node: any(all(word in line for word in words)
                                       for line in node.agent.output().splitlines()), 10,
                 lambda node=node: f"a line of {node.name} with {words}:\n{node.agent.output()[-3000:]}")


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_edit_is_named_and_the_last_good_version_stays(mesh, fault):
    text, field = BROKEN[fault]
    mesh.lab.write(FILE, GOOD)
    mesh.wait_refused(mesh.client, mesh.server)
    mesh.lab.write(FILE, text)
    said(mesh, FILE, *([field] if field else []))
    assert not mesh.reaches(mesh.client, mesh.server), "the policy of before is still in force"
    mesh.lab.write(FILE, GOOD.replace("sa/curl", "sa/nobody"))
    mesh.wait_reaches(mesh.client, mesh.server)
    mesh.lab.delete(FILE)


def test_a_broken_object_does_not_hold_back_its_neighbours_in_the_file(mesh):
    mesh.lab.write(FILE, BROKEN["an unknown enumerator"][0] + "---\n" + GOOD.replace("deny-curl", "second"))
    mesh.wait_refused(mesh.client, mesh.server)
    mesh.lab.delete(FILE)
    mesh.wait_reaches(mesh.client, mesh.server)


def test_unknown_kinds_and_fields_are_warned_of_and_nothing_else(mesh):
    mesh.lab.write("odd.yaml", "apiVersion: example.com/v1\nkind: Gizmo\nmetadata: {name: one, namespace: shop}\n---\n"
                   + GOOD.replace("  action: DENY", "  action: DENY\n  colour: blue"))
    mesh.wait_refused(mesh.client, mesh.server)
    said(mesh, "odd.yaml", "colour")
    mesh.lab.delete("odd.yaml")
    mesh.wait_reaches(mesh.client, mesh.server)


def test_two_pods_that_claim_one_address_are_told_and_others_go_on(mesh):
    double = manifests.pod("double", "shop", "node2", "5f0f8a52-0000-4000-8000-000000000001", [mesh.server.ipv4],
                           "/run/netns/nowhere", service_account="web")
    mesh.lab.apply(double)
    said(mesh, "double", mesh.server.ipv4)
    assert mesh.reaches(mesh.client, mesh.other)
    mesh.lab.delete(double)
    mesh.wait_reaches(mesh.client, mesh.server)


def test_a_pod_whose_namespace_cannot_be_found_is_told_and_others_go_on(mesh):
    lost = manifests.pod("lost", "shop", "node1", "5f0f8a52-0000-4000-8000-000000000002", ["10.244.1.250"],
                         "/run/netns/nowhere")
    mesh.lab.apply(lost)
    wait_for(lambda: any("lost" in line and "nowhere" in line for line in mesh.node1.agent.output().splitlines()), 10,
             "the log names pod and namespace")
    assert mesh.reaches(mesh.client, mesh.server)
    mesh.lab.delete(lost)


def test_ten_thousand_objects_at_once_change_nothing_for_live_traffic(mesh):
    session = mesh.client.spawn_tool("session", mesh.server.ipv4, 7)
    session.wait_output('"open"')
    before = mesh.generations()
    services = [manifests.service(f"many-{number}", "bulk", [{"name": "a", "port": 80}],
                                  [f"10.97.{number // 250}.{number % 250 + 1}"]) for number in range(10000)]
    mesh.lab.apply(manifests.namespace("bulk"), *services, file="bulk.yaml")
    wait_for(lambda: all(n > b for n, b in zip(mesh.generations(), before)), 60, "a new generation")
    assert mesh.reaches(mesh.client, mesh.server) and session.running
    mesh.lab.delete("bulk.yaml")
    deny = authorization_policy("deny", "shop", "DENY", [from_principal(mesh.client.principal)])
    mesh.lab.apply(deny)
    mesh.wait_refused(mesh.client, mesh.server, seconds=60)
    mesh.lab.delete(deny)
    mesh.wait_reaches(mesh.client, mesh.server)
    session.stop()


def test_a_folder_that_vanishes_leaves_the_last_good_state_in_force(own_mesh):
    mesh = own_mesh
    mesh.apply(authorization_policy("deny", "shop", "DENY", [from_principal(mesh.client.principal)]))
    mesh.wait_refused(mesh.client, mesh.server)
    os.rename(mesh.lab.config_dir, mesh.lab.config_dir + ".away")
    said(mesh, mesh.lab.config_dir)
    assert not mesh.reaches(mesh.client, mesh.server) and mesh.reaches(mesh.outsider, mesh.server)
    os.rename(mesh.lab.config_dir + ".away", mesh.lab.config_dir)
    mesh.lab.delete("authorizationpolicy-shop.deny.yaml")
    mesh.wait_reaches(mesh.client, mesh.server)


@pytest.mark.parametrize("fault", ["no folder", "socket path in use", "cgroup elsewhere", "certificate authority away"])
def test_a_start_that_cannot_work_says_so_in_one_sentence(lab, fault):
    node = lab.node("node1")
    node.pod("only", "shop")
    lab.write_manifests()
    lab.start_controller()
    named = {"no folder": lab.config_dir, "socket path in use": "admin.sock", "cgroup elsewhere": "cgroup",
             "certificate authority away": "ca.sock"}[fault]
    if fault == "no folder":
        shutil.move(lab.config_dir, lab.config_dir + ".away")
    elif fault == "socket path in use":
        os.makedirs(f"{node.run_dir}/admin.sock/taken")
    elif fault == "cgroup elsewhere":
        node.cgroup_flag = "/tmp"
    else:
        lab.controller.kill()
    agent = node.start_agent(ready=False)
    wait_for(lambda: named in agent.output(), 10, lambda: f"{named} in\n{agent.output()}")
    if fault == "certificate authority away":  # that can mend itself: the node waits, and says so when asked
        status, body = wait_for(lambda: node.http_get(15021, "/healthz/ready"), 10, ignore=(OSError,))
        assert status == 503 and body.strip()
        lab.start_controller()
        node.wait_ready(30)
    else:
        assert agent.wait(20) == 1, agent.output()
        assert "terminate called" not in agent.output()


def test_a_node_without_pods_is_ready_and_idle(lab):
    lab.node("node1").start_agent()
