"""The main path on a cluster that knows no IPv4 (pods, Services, nodes, API server and certificate authority) and whose nodes
have cgroup v2 alone: agents are told nothing of their cgroups. One CRD of Istio's is somebody else's."""

import json

import pytest
from minicluster import workloads
from minicluster.mesh import LABEL, Mesh, Wires, ask, crd, foreign_crd
from minicluster.plan import bracketed


@pytest.fixture(scope="module")
def cluster(ipv6_cluster):
    return ipv6_cluster


@pytest.fixture(scope="module")
def foreign(cluster, chart):
    return foreign_crd(cluster, cluster.helm("show", "crds", chart))


@pytest.fixture(scope="module")
def mesh(cluster, chart, image, foreign):
    with Mesh.installed(cluster, chart, image) as made:
        yield made


@pytest.fixture(scope="module")
def pods(cluster, mesh):
    """An echo pod on each node, in the mesh."""
    mesh.agents()
    cluster.apply([workloads.namespace("shop", {LABEL: "ambient"}),
                   *workloads.echo("echo", "shop", replicas=2, kind="NodePort"),
                   workloads.namespace("street"), *workloads.echo("passer", "street", replicas=1)])
    cluster.ready_pods("app=passer", "street")
    return cluster.ready_pods("app=echo", "shop", count=2)


def test_the_nodes_have_cgroup_v2_alone_and_agents_run_without_leave_for_anything_else(cluster, mesh):
    for node in cluster.nodes:
        assert node.run(["stat", "-fc", "%T", "/sys/fs/cgroup"]).stdout == "cgroup2fs\n"
    for agent in mesh.agents():
        assert "--allow-hybrid" not in json.dumps(agent.object["spec"])


def test_one_label_makes_everything_between_nodes_mutual_tls(cluster, mesh, pods):
    assert all(pod.ipv4 is None and len(pod.addresses) == 1 for pod in pods)
    cluster.wait(lambda: all(ask(one, f"http://{bracketed(other.ipv6)}:8080/") for one in pods for other in pods), 60,
                 "all pods talk")
    before = mesh.count("istio_tcp_connections_opened_total", connection_security_policy="mutual_tls", reporter="source")
    with Wires(cluster, pods) as wires:
        for client in pods:
            for server in pods:
                answer = ask(client, f"http://{bracketed(server.ipv6)}:8080/secret")
                assert answer["pod"] == server.name and answer["client"].startswith(f"[{client.ipv6}]:")
        seen = {ask(pods[0], "http://echo/secret")["pod"] for _ in range(20)}
    assert seen == {pod.name for pod in pods}
    wires.require_hbone_only()
    assert not wires.contains(b"/secret")
    after = mesh.count("istio_tcp_connections_opened_total", connection_security_policy="mutual_tls", reporter="source")
    assert all(after[node] > before[node] for node in after)


def test_strict_refuses_strangers_and_lets_probes_pass(cluster, mesh, pods):
    stranger, = cluster.ready_pods("app=passer", "street")
    service = cluster.api.get("/api/v1/namespaces/shop/services/echo")["spec"]
    outside = f"http://{bracketed(cluster.node(1).ipv6)}:{service['ports'][0]['nodePort']}/"
    server = next(pod for pod in pods if pod.node_name != stranger.node_name)
    url = f"http://{bracketed(server.ipv6)}:8080/"
    assert ask(stranger, url) and cluster.wait(lambda: cluster.reach(outside).stdout, 20, "the node port answers")
    cluster.apply({"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
                   "metadata": {"name": "default", "namespace": "shop"}, "spec": {"mtls": {"mode": "STRICT"}}})
    cluster.wait(lambda: ask(stranger, url) is None and not cluster.reach(outside).stdout, 30, "STRICT is in force")
    cluster.kubectl("rollout", "restart", "-n", "shop", "deployment/echo")
    cluster.rollout("deployment/echo", "shop", 120)
    fresh = cluster.ready_pods("app=echo", "shop", count=2)
    assert {pod.name for pod in fresh}.isdisjoint(pod.name for pod in pods)
    for client in fresh:
        for target in fresh:
            cluster.wait(lambda client=client, target=target: ask(client, f"http://{bracketed(target.ipv6)}:8080/"), 30)
    probed = mesh.count("nodemesh_kernel_events_total", event="probe_passed")

    def passed():
        now = mesh.count("nodemesh_kernel_events_total", event="probe_passed")
        return all(now[node] >= probed[node] + 10 for node in now)

    cluster.wait(passed, 30, "probes pass on both nodes")
    assert all(pod.restarts == 0 for pod in cluster.ready_pods("app=echo", "shop", count=2))


def test_uninstall_leaves_nothing_and_somebody_elses_crd_as_it_was(cluster, mesh, pods, foreign):
    names = cluster.kubectl("get", "crds", "-o", "name").split()
    assert len([name for name in names if name.endswith(".istio.io")]) > 1, "those that were absent were installed"
    mesh.uninstall()
    assert mesh.left_behind() == []
    assert cluster.kubectl("get", "crds", "-o", "name").split() == [name for name in names if "nodemesh" not in name]
    assert crd(cluster) == foreign
    one, other = cluster.ready_pods("app=echo", "shop", count=2)
    with Wires(cluster, [one, other]) as wires:
        assert ask(one, f"http://{bracketed(other.ipv6)}:8080/plainly")["pod"] == other.name
    assert wires.contains(b"GET /plainly")
