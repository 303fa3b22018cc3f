"""What the controller's leader does beside certificates: conditions and Events on policies, marks on Pods, and the
WorkloadSlices of a node without an agent. node3 has none until the last test but one."""

import json
import os
import subprocess

import pytest
from minicluster import workloads
from minicluster.api import ApiError
from minicluster.plan import bracketed

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.environ.get("NODEMESH_BUILD_DIR") or f"{ROOT}/build/release"
NAMESPACE = "nodemesh-system"
REDIRECTION = "ambient.istio.io/redirection"
SLICES = "/apis/nodemesh.dev/v1alpha1/workloadslices"
POLICIES = "/apis/security.istio.io/v1/namespaces/market/authorizationpolicies"


@pytest.fixture(scope="module")
def mesh(cluster, tmp_path_factory):
    """Agents on node1 and node2 alone; an echo pod on each of the three nodes in namespace market, which is in the mesh."""
    chart = tmp_path_factory.mktemp("chart") / "nodemesh.tgz"
    subprocess.run([f"{ROOT}/scripts/chart", "--output", chart], check=True, stdout=subprocess.DEVNULL)
    image = tmp_path_factory.mktemp("image") / "nodemesh.tar"
    subprocess.run([f"{ROOT}/scripts/image", "--build-dir", BUILD, "--output", image], check=True, stdout=subprocess.DEVNULL)
    cluster.load_image(image)
    for node in ("node1", "node2"):
        cluster.kubectl("label", "node", node, "mesh=on", "--overwrite")
    cluster.apply([workloads.namespace("market", {"istio.io/dataplane-mode": "ambient"}), *workloads.echo("stall", "market")])
    values = ["-f", f"{ROOT}/charts/nodemesh/profiles/test.yaml"] if cluster.plan.cgroup == 1 else \
        ["--set", "image.pullPolicy=Never"]
    cluster.helm("install", "nodemesh", chart, "--namespace", NAMESPACE, "--create-namespace", *values,
                 "--set", "agent.nodeSelector.mesh=on,interop.istio=true")
    try:
        cluster.ready_pods("app.kubernetes.io/component=agent", NAMESPACE, count=2, seconds=90)
        yield cluster
    finally:
        cluster.helm("uninstall", "nodemesh", "--namespace", NAMESPACE)
        cluster.wait(lambda: not cluster.pods(namespace=NAMESPACE), 120, "the mesh's pods have ended")
        cluster.delete("namespace", "market", NAMESPACE)
        cluster.kubectl("label", "node", "--all", "mesh-")


def stalls(cluster):
    """{node: pod}"""
    return {pod.node_name: pod for pod in cluster.ready_pods("app=stall", "market", count=3)}


def condition(thing, name):
    return next((one for one in thing.get("status", {}).get("conditions", []) if one["type"] == name), None)


def mark(pod):
    return condition(pod.object, "nodemesh.dev/Enrolled")


def accepted(cluster, name):
    return condition(cluster.api.get(f"{POLICIES}/{name}"), "nodemesh.dev/Accepted")


def slice_of(cluster, node):
    try:
        return cluster.api.get(f"{SLICES}/{node}-0")["spec"]
    except ApiError:
        return None


def states(cluster, node):
    """{pod's name: mesh or none} of the node's first slice."""
    return {pod["name"]: pod["state"] for pod in (slice_of(cluster, node) or {}).get("pods", [])}


def policy(name, block, **metadata):
    return {"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"name": name, "namespace": "market", **metadata},
            "spec": {"action": "DENY", "rules": [{"from": [{"source": {"ipBlocks": [block]}}]}]}}


def test_a_node_without_an_agent_has_slices_that_say_none_and_meshed_pods_reach_it_in_plaintext(mesh):
    pods = stalls(mesh)
    mesh.wait(lambda: states(mesh, "node3").get(pods["node3"].name) == "none", 60, "the controller speaks for node3")
    assert slice_of(mesh, "node3")["complete"]
    owner, = mesh.api.get(f"{SLICES}/node3-0")["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("Node", mesh.node(3).object()["metadata"]["uid"])
    for node in ("node1", "node2"):
        mesh.wait(lambda node=node: states(mesh, node).get(pods[node].name) == "mesh", 60, f"{node}'s agent has its pod")
    url = f"http://{bracketed(pods['node3'].ipv4)}:8080/"

    def answered():
        done = pods["node1"].exec(["/echo", "get", url], check=False)
        return json.loads(done) if done.startswith("{") else None

    assert mesh.wait(answered, 30, "an answer from node3")["node"] == "node3"


def test_each_pod_that_a_label_wants_says_whether_it_is_enrolled_and_why_not(mesh):
    mesh.wait(lambda: all(mark(pod) for pod in stalls(mesh).values()), 60, "every pod has its mark")
    found = {node: (mark(pod)["status"], mark(pod)["reason"]) for node, pod in stalls(mesh).items()}
    assert found == {"node1": ("True", "Enrolled"), "node2": ("True", "Enrolled"), "node3": ("False", "NoAgent")}
    assert "nodemesh.dev/Enrolled" in mesh.kubectl("describe", "pod", "-n", "market", stalls(mesh)["node1"].name)
    assert all(mark(pod) is None for pod in mesh.pods(namespace="kube-system"))


def test_pods_in_the_mesh_have_istios_annotation_and_those_on_a_node_without_an_agent_are_believed_by_it(mesh):
    pods = stalls(mesh)
    given = {node: pod.object["metadata"].get("annotations", {}).get(REDIRECTION) for node, pod in pods.items()}
    assert given == {"node1": "enabled", "node2": "enabled", "node3": None}
    name = pods["node3"].name
    mesh.kubectl("annotate", "pod", "-n", "market", name, f"{REDIRECTION}=enabled")  # as Istio's CNI plugin
    mesh.wait(lambda: states(mesh, "node3").get(name) == "mesh", 60, "the controller says that a ztunnel serves it")
    mesh.kubectl("annotate", "pod", "-n", "market", name, f"{REDIRECTION}-")
    mesh.wait(lambda: states(mesh, "node3").get(name) == "none", 60, "the controller has taken it back")


def test_a_broken_policy_says_what_is_wrong_with_an_event_and_flips_when_it_is_mended(mesh):
    mesh.apply(policy("fence", "10.0.0.300/8"))
    said = mesh.wait(lambda: accepted(mesh, "fence"), 30, "the policy has its condition")
    assert (said["status"], said["reason"], said["observedGeneration"]) == ("False", "Refused", 1)
    assert "spec.rules[0].from[0].source.ipBlocks" in said["message"] and "fix:" in said["message"]

    def events():
        found = mesh.api.get("/apis/events.k8s.io/v1/namespaces/market/events")["items"]
        return [one for one in found if one["regarding"]["name"] == "fence"]

    mesh.wait(events, 30, "an Event")
    assert said["message"] in mesh.kubectl("describe", "authorizationpolicy", "-n", "market", "fence")
    assert [(one["type"], one["reason"], one["note"]) for one in events()] == [("Warning", "Refused", said["message"])]
    mesh.apply(policy("fence", "10.255.0.0/16"))
    mesh.wait(lambda: accepted(mesh, "fence")["status"] == "True", 30, "the condition flips")
    assert accepted(mesh, "fence")["observedGeneration"] == 2
    fence = mesh.api.get(f"{POLICIES}/fence")
    assert fence["metadata"]["generation"] == 2 and len(fence["status"]["conditions"]) == 1
    version = fence["metadata"]["resourceVersion"]
    # Nothing is written that is there already: the policy's last write is still ours when another has had its turn.
    mesh.apply(policy("second", "10.254.0.0/16"))
    mesh.wait(lambda: accepted(mesh, "second"), 30, "another policy was judged after it")
    assert mesh.api.get(f"{POLICIES}/fence")["metadata"]["resourceVersion"] == version
    assert len(events()) == 1


def test_the_controller_may_write_no_more_of_a_pod_than_its_mark(mesh):
    name = stalls(mesh)["node1"].name
    account = f"system:serviceaccount:{NAMESPACE}:nodemesh-controller"

    def patch(status):
        return mesh.api.raw("PATCH", f"/api/v1/namespaces/market/pods/{name}/status", {"status": status},
                            "application/strategic-merge-patch+json", user=account)

    for status in ({"podIPs": [{"ip": "10.244.9.9"}]}, {"phase": "Failed"},
                   {"conditions": [{"type": "Ready", "status": "False"}]}):
        with pytest.raises(ApiError, match="no more of a Pod's status"):
            patch(status)
    patch({"conditions": [{"type": "nodemesh.dev/Enrolled", "status": "True", "message": "test"}]})

    def annotate(metadata):
        return mesh.api.raw("PATCH", f"/api/v1/namespaces/market/pods/{name}/status", {"metadata": metadata},
                            "application/strategic-merge-patch+json", user=account)

    for metadata in ({"labels": {"app": "other"}}, {"labels": {"app": None}}, {"annotations": {"other": "x"}},
                     {"annotations": {REDIRECTION: "disabled"}}, {"finalizers": ["example.com/stay"]}):
        with pytest.raises(ApiError, match="no labels and no annotation but"):
            annotate(metadata)
    annotate({"annotations": {REDIRECTION: None}})
    with pytest.raises(RuntimeError, match="only the nodemesh agent of the node and the nodemesh controller"):
        mesh.kubectl("annotate", "workloadslice", "node3-0", "test=test")


def test_an_agent_that_arrives_takes_its_node_over_and_its_pods_mark_flips(mesh):
    pods = stalls(mesh)
    mesh.kubectl("label", "node", "node3", "mesh=on")
    mesh.ready_pods("app.kubernetes.io/component=agent", NAMESPACE, count=3, seconds=90)
    mesh.wait(lambda: states(mesh, "node3").get(pods["node3"].name) == "mesh", 60, "the agent has corrected node3's slices")
    mesh.wait(lambda: mark(stalls(mesh)["node3"])["status"] == "True", 60, "the mark flips")
    assert stalls(mesh)["node3"].ready


def test_the_slices_of_a_node_that_leaves_the_cluster_go_with_it(mesh):
    """A Node that no kubelet serves and no agent's label selects."""
    mesh.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "ghost"}})
    mesh.wait(lambda: slice_of(mesh, "ghost"), 60, "the controller speaks for the node")
    mesh.kubectl("delete", "node", "ghost", "--wait=false")
    mesh.wait(lambda: slice_of(mesh, "ghost") is None, 90, "the garbage collector has its slices")
