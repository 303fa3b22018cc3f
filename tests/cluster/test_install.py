"""nodemesh on the cluster, by its Helm chart: installed, two labels, traffic judged on the wire, and taken away again.
The tests stand in the order of a user's day; the last one uninstalls."""

import json
import re
import urllib.parse

import pytest
import yaml
from load import Load
from minicluster import workloads
from minicluster.mesh import AGENT, LABEL, NAMESPACE, PROFILES, Mesh, ask, wire
from minicluster.plan import bracketed

@pytest.fixture(scope="module")
def mesh(cluster, chart, image):
    """The installed mesh, and an echo pod on each node in a namespace that is not in it."""
    cluster.apply([workloads.namespace("bazaar"), *workloads.echo("echo", "bazaar"),
                   workloads.namespace("street"), *workloads.echo("passer", "street", replicas=1)])
    with Mesh.installed(cluster, chart, image) as made:
        yield made
    cluster.delete("namespace", "bazaar", "street")


def echoes(cluster):
    return cluster.ready_pods("app=echo", "bazaar", count=3)


@pytest.mark.parametrize("profile", [None, "minimal.yaml", "strict.yaml", "test.yaml"])
def test_the_api_server_takes_every_object_of_the_chart(cluster, chart, profile):
    chosen = ["-f", f"{PROFILES}/{profile}"] if profile else []
    text = cluster.helm("template", "nodemesh", chart, "--namespace", "default", "--kube-version", "1.34",
                        "--include-crds", "--no-hooks", *chosen)
    done = cluster.kubectl("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-", input=text)
    assert done.count("serverside-applied") == len([thing for thing in yaml.safe_load_all(text) if thing])


def test_helm_install_gives_ready_agents_on_all_nodes_and_two_controllers(cluster, mesh):
    assert [agent.node_name for agent in mesh.agents()] == ["node1", "node2", "node3"]
    cluster.ready_pods("app.kubernetes.io/component=controller", NAMESPACE, count=2)
    rollout, label, check = re.findall(r"^  (\S.*)$", cluster.helm("get", "notes", "nodemesh", "-n", NAMESPACE), re.MULTILINE)
    assert "successfully rolled out" in cluster.run(rollout.split()).stdout
    assert cluster.run([*label.split(), "--dry-run=server"]).stdout == "namespace/default labeled (server dry run)\n"
    assert "Phase:          Succeeded" in cluster.run(check.split(), timeout=180).stdout


def test_before_any_label_pods_talk_as_if_there_were_no_mesh(cluster, mesh):
    client, server, _ = echoes(cluster)
    with wire(cluster, [client]) as capture:
        assert ask(client, f"http://{server.ipv4}:8080/plain")["client"].startswith(client.ipv4)
    assert capture.report().contains(b"GET /plain")


@pytest.fixture(scope="module")
def labelled(cluster, mesh):
    """The namespace is in the mesh; its pods were there before. Yields them when every pair of nodes talks HBONE."""
    mesh.agents()
    cluster.kubectl("label", "namespace", "bazaar", f"{LABEL}=ambient")
    pods = echoes(cluster)

    def enrolled():
        opened = mesh.count("istio_tcp_connections_opened_total", connection_security_policy="mutual_tls")
        for client in pods:
            for server in pods:
                ask(client, f"http://{server.ipv4}:8080/")
        after = mesh.count("istio_tcp_connections_opened_total", connection_security_policy="mutual_tls")
        # two servers elsewhere, and two clients elsewhere
        return all(after[node] >= opened[node] + 4 for node in after)

    cluster.wait(enrolled, 60, "all pairs of nodes talk by HBONE")
    return pods


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_after_one_label_everything_between_nodes_is_mutual_tls_and_the_server_still_sees_the_client(
        cluster, mesh, labelled, family):
    before = mesh.count("istio_tcp_connections_opened_total", connection_security_policy="mutual_tls", reporter="source")
    with wire(cluster, labelled) as capture:
        for client in labelled:
            for server in labelled:
                answer = ask(client, f"http://{bracketed(getattr(server, family))}:8080/secret")
                assert (answer["pod"], answer["node"]) == (server.name, server.node_name)
                assert answer["client"].rsplit(":", 1)[0] == bracketed(getattr(client, family))
    report = capture.report()
    report.require_hbone_only()
    assert report.versions <= {"TLSv1.3"} and not report.contains(b"/secret")
    after = mesh.count("istio_tcp_connections_opened_total", connection_security_policy="mutual_tls", reporter="source")
    assert all(after[node] == before[node] + 2 for node in after)


def test_a_service_is_reached_by_name_through_the_mesh(cluster, labelled):
    with wire(cluster, labelled) as capture:
        seen = {ask(labelled[0], "http://echo/by-name")["pod"] for _ in range(30)}
    assert seen == {pod.name for pod in labelled}
    capture.report().require_hbone_only()


def test_slices_are_listed_by_their_short_name_with_node_and_whether_they_are_all(cluster, mesh, labelled):
    head, *rows = [line.split() for line in cluster.kubectl("get", "wls").splitlines()]
    assert head == ["NAME", "NODE", "COMPLETE", "AGE"]
    assert {tuple(row[:3]) for row in rows if row[0].endswith("-0")} == {(f"node{n}-0", f"node{n}", "true") for n in (1, 2, 3)}
    assert all(len(row) >= 3 and row[0].startswith(row[1]) for row in rows)


def test_strict_refuses_strangers_while_kubelets_probes_and_the_mesh_go_on(cluster, mesh, labelled):
    stranger, = cluster.ready_pods("app=passer", "street")
    server = next(pod for pod in labelled if pod.node_name != stranger.node_name)
    url = f"http://{server.ipv4}:8080/"
    assert ask(stranger, url)
    restarts = {pod.name: pod.restarts for pod in labelled}
    cluster.apply({"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
                   "metadata": {"name": "default", "namespace": "bazaar"}, "spec": {"mtls": {"mode": "STRICT"}}})
    cluster.wait(lambda: ask(stranger, url) is None, 30, "STRICT is in force")
    # A pod that starts under STRICT has its startup, readiness and liveness probes passed from the beginning.
    cluster.kubectl("rollout", "restart", "-n", "bazaar", "deployment/echo")
    cluster.rollout("deployment/echo", "bazaar", seconds=120)
    pods = echoes(cluster)
    assert {pod.name for pod in pods}.isdisjoint(restarts)
    for client in pods:
        for one in pods:
            assert cluster.wait(lambda client=client, one=one: ask(client, f"http://{one.ipv4}:8080/"), 30, "an answer")
    assert ask(stranger, f"http://{pods[0].ipv4}:8080/") is None
    probed = mesh.count("nodemesh_kernel_events_total", event="probe_passed")
    nodes = {pod.node_name for pod in pods}

    def passed():
        now = mesh.count("nodemesh_kernel_events_total", event="probe_passed")
        return all(now[node] > probed[node] for node in nodes)

    cluster.wait(passed, 30, "probes pass on every node that has a pod")
    assert all(pod.restarts == 0 and pod.ready for pod in echoes(cluster))
    assert mesh.count("nodemesh_kernel_events_total", event="unknown_passed") == {"node1": 0, "node2": 0, "node3": 0}


def test_an_agent_cannot_read_secrets_or_write_another_nodes_slices(cluster, mesh):
    account = f"system:serviceaccount:{NAMESPACE}:nodemesh-agent"
    for right in ("get secrets", "create serviceaccounts/token", "create pods/exec", "update pods"):
        assert cluster.kubectl("auth", "can-i", *right.split(), "-A", "--as", account, check=False).strip() == "no"
    names = [thing["metadata"]["name"] for thing in cluster.api.get("/apis/nodemesh.dev/v1alpha1/workloadslices")["items"]]
    assert {"node1-0", "node2-0", "node3-0"} <= set(names)
    agent = mesh.agents()[0]
    assert agent.node_name == "node1"
    token = cluster.kubectl("create", "token", "nodemesh-agent", "-n", NAMESPACE, "--bound-object-kind", "Pod",
                            "--bound-object-name", agent.name).strip()
    server = cluster.kubectl("config", "view", "-o", "jsonpath={.clusters[0].cluster.server}")

    def annotate(name):
        return cluster.kubectl("--kubeconfig", "/dev/null", "--server", server, "--insecure-skip-tls-verify", "--token", token,
                               "annotate", "workloadslice", name, "test=test")

    annotate("node1-0")
    with pytest.raises(RuntimeError, match="spec.node is node2, but the agent that writes runs on node1"):
        annotate("node2-0")


def test_a_proxy_container_that_dies_as_a_whole_is_followed_into_its_new_cgroup(cluster, mesh, labelled):
    pods = echoes(cluster)
    client, server, _ = pods
    node = next(node for node in cluster.nodes if node.name == client.node_name)

    def agent():
        return next(agent for agent in mesh.agents() if agent.node_name == node.name)

    def containers():
        return {one["name"]: (one["containerID"].split("//")[1], one["restartCount"])
                for one in agent().object["status"]["containerStatuses"]}

    def groups(container):
        return node.run(["find", node.cgroup2, "-type", "d", "-name", f"*{container}*"]).stdout.split()

    before = containers()
    assert groups(before["proxy"][0])
    node.run(["ctr", "-n", "k8s.io", "task", "kill", "-s", "SIGKILL", before["proxy"][0]])
    cluster.wait(lambda: containers()["proxy"][1] > before["proxy"][1], 60, "the proxy's container is back")
    # A proxy whose connections were taken for the pod's own would get its own traffic.
    with wire(cluster, pods) as capture:
        cluster.wait(lambda: ask(client, f"http://{server.ipv4}:8080/again"), 30, "traffic through the new container")
    capture.report().require_hbone_only()
    assert containers()["warden"] == before["warden"]
    cluster.wait(lambda: not groups(before["proxy"][0]), 30, "the old container's cgroup is gone")


def test_upgrade_with_other_values_replaces_every_agent_and_no_connection_under_load_notices(
        cluster, mesh, labelled):
    before = {agent.uid for agent in mesh.agents()}

    def left():
        """The agents from before that are still there, and whether each was told to end."""
        return {pod.uid: "deletionTimestamp" in pod.object["metadata"]
                for pod in cluster.pods("app.kubernetes.io/component=agent", NAMESPACE) if pod.uid in before}

    pods = echoes(cluster)
    loads = [Load(cluster, "bazaar", pod.node_name, [server.ipv4 for server in pods]) for pod in pods[:2]]
    try:
        mesh.upgrade("--set", "agent.podLabels.round=two")
        cluster.ready_pods("round=two", NAMESPACE, count=3, seconds=240)
        cluster.wait(lambda: all(left().values()), 60, "every old agent was told to end")
        for counts in [load.more(200) for load in loads]:
            assert not counts["errors"], counts
        assert left(), "the old agents keep the connections that they have"
    finally:
        for load in loads:
            load.close()
    cluster.wait(lambda: not left(), 90, "the old agents end with their last connections")
    cluster.rollout("daemonset/nodemesh-agent", NAMESPACE)
    with wire(cluster, pods) as capture:
        for client in pods:
            for server in pods:
                assert cluster.wait(lambda client=client, server=server: ask(client, f"http://{server.ipv4}:8080/"), 30)
    capture.report().require_hbone_only()


def test_nothing_that_the_chart_owns_was_changed_since_but_by_helm(cluster, mesh, labelled):
    """What a GitOps controller would see: no difference, and no field of anybody else's but in a status."""
    text = cluster.helm("get", "manifest", "nodemesh", "-n", NAMESPACE)
    done = cluster.run([f"{cluster.bin}/kubectl", "diff", "-n", NAMESPACE, "-f", "-"], input=text, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
    things = json.loads(cluster.kubectl("get", "-n", NAMESPACE, "-f", "-", "-o", "json", "--show-managed-fields", input=text))["items"]
    writers = {(thing["kind"], one["manager"]) for thing in things for one in thing["metadata"]["managedFields"]
               if one.get("subresource") != "status"}
    assert len(things) > 15 and {kind for kind, writer in writers if writer == "helm"} == {thing["kind"] for thing in things}
    # its word on which revision of a template is in use
    assert {one for one in writers if one[1] != "helm"} <= {("Deployment", "kube-controller-manager")}


def test_no_agent_ever_asked_for_pods_of_another_node(cluster, mesh, labelled):
    """By the API server's audit log, over all that this cluster has seen."""
    if cluster.plan.audit != AGENT:
        pytest.skip("this cluster keeps no audit log of agents")
    asked = set()
    with open(f"{cluster.plan.state}/log/audit.log", encoding="utf-8") as log:
        for event in map(json.loads, log):
            if event.get("objectRef", {}).get("resource") == "pods" and event["verb"] in ("list", "watch"):
                assert event["user"]["username"] == AGENT
                node, = event["user"]["extra"]["authentication.kubernetes.io/node-name"]
                words = urllib.parse.parse_qs(urllib.parse.urlsplit(event["requestURI"]).query)
                assert words.get("fieldSelector") == [f"spec.nodeName={node}"], event["requestURI"]
                asked.add(node)
    assert asked == {node.name for node in cluster.nodes}


def test_helm_uninstall_leaves_nothing_of_the_mesh_and_pods_talk_plainly(cluster, mesh):
    assert len(mesh.left_behind()) > 20, "what is looked for is there to be found"
    mesh.uninstall()
    assert mesh.left_behind() == []
    pods = echoes(cluster)  # by node; not all of them on one
    client, server = pods[0], pods[-1]
    with wire(cluster, [client]) as capture:
        assert ask(client, f"http://{server.ipv4}:8080/plain-again")
        assert ask(server, f"http://{client.ipv4}:8080/plain-again")
    assert capture.report().contains(b"GET /plain-again")
