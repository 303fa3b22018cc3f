"""What tenants and a node that was taken over may write to a real API server, and who suffers from it: they alone.
`victim` is a namespace of the mesh whose traffic must stay mutual TLS, and go on, whatever `villain` writes."""

import concurrent.futures
import contextlib
import json
import time

import netns
import pytest
import yaml
from ca_client import CaClient, Refused
from minicluster import workloads
from minicluster.api import Api
from minicluster.mesh import BUILD, LABEL, NAMESPACE, Mesh, Wires, ask
from minicluster.plan import bracketed
from waiting import FACTOR

OBJECTS = 2000


@pytest.fixture(scope="module")
def mesh(cluster, chart, image):
    with Mesh.installed(cluster, chart, image) as made:
        made.agents()
        yield made
    cluster.delete("namespace", "victim", "villain", "crowd")


@pytest.fixture(scope="module")
def victim(cluster, mesh):
    """An echo pod on each node, in the mesh, by node."""
    cluster.apply([workloads.namespace("victim", {LABEL: "ambient"}), *workloads.echo("echo", "victim"),
                   workloads.namespace("villain", {LABEL: "ambient"}), *workloads.echo("echo", "villain", replicas=1),
                   workloads.namespace("crowd")])
    pods = cluster.ready_pods("app=echo", "victim", count=3)
    cluster.ready_pods("app=echo", "villain", count=1)
    cluster.wait(lambda: all(ask(one, f"http://{bracketed(address)}:8080/") for one in pods for other in pods
                             for address in other.addresses), 60, "all of victim's pods talk")
    return pods


@contextlib.contextmanager
def unharmed(cluster, victim):
    """In the block victim's pods reach one another, and at its end too, by HBONE alone."""
    with Wires(cluster, victim) as wires:
        yield
        for client in victim:
            for server in victim:
                for address in server.addresses:
                    assert ask(client, f"http://{bracketed(address)}:8080/private")["pod"] == server.name
            assert ask(client, "http://echo/private")
    wires.require_hbone_only()
    assert not wires.contains(b"/private")


def generations(mesh):
    return {agent.node_name: mesh.metrics(agent).sum("nodemesh_config_generation") for agent in mesh.agents()}


def in_force(cluster, mesh, before):
    """Waits until every agent has a newer configuration than before."""
    cluster.wait(lambda: all(now > before[node] for node, now in generations(mesh).items()), 30, "agents have read it")


def logged(cluster, mesh, *needles, nodes=("node1", "node2", "node3")):
    """Waits until the proxies of some nodes have written a line with all of these words."""
    def found(node):
        return any(all(needle in line for needle in needles) for line in mesh.log(node).splitlines())
    for node in nodes:
        cluster.wait(lambda node=node: found(node), 30, f"the proxy of {node} says {needles}")


def slice_of(name, namespace, service, address, node, pod, **more):
    return {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": name, "namespace": namespace, "labels": {"kubernetes.io/service-name": service}},
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": [
                {"addresses": [address], "nodeName": node, "conditions": {"ready": True},
                 "targetRef": {"kind": "Pod", "name": pod.name, "namespace": namespace, "uid": pod.uid}, **more}]}


def bare_service(name, namespace, ports):
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace}, "spec": {
        "selector": {"app": "echo"}, "ports": ports}}


def test_a_service_whose_port_has_no_name_is_served_through_the_mesh(cluster, mesh, victim):
    cluster.apply(bare_service("nameless", "victim", [{"port": 81, "targetPort": 8080}]))
    with unharmed(cluster, victim):
        for client in victim:
            assert cluster.wait(lambda client=client: ask(client, "http://nameless:81/private"), 30)


def test_selectors_that_match_nothing_are_named_by_meshctl_check_and_disturb_nobody(cluster, mesh, victim):
    nobody = {"selector": {"matchLabels": {"app": "ehco"}}}
    policy = {"metadata": {"name": "nobody", "namespace": "victim"}, "apiVersion": "security.istio.io/v1"}
    named = {"NM1303": "PeerAuthentication victim/nobody", "NM1307": "AuthorizationPolicy victim/nobody",
             "NM1322": "Service victim/nobody"}
    before = generations(mesh)
    cluster.apply([{**policy, "kind": "PeerAuthentication", "spec": {**nobody, "mtls": {"mode": "STRICT"}}},
                   {**policy, "kind": "AuthorizationPolicy", "spec": nobody},
                   workloads.service("nobody", "victim", {"http": (80, 8080)})])
    in_force(cluster, mesh, before)
    with unharmed(cluster, victim):
        assert ask(victim[0], "http://nobody/") is None
    stranger = cluster.reach(f"http://{bracketed(victim[1].ipv6)}:8080/healthz")
    assert stranger.stdout == "ok\n", "neither STRICT nor a policy that allows nobody is in force"

    def found():
        done = cluster.run([f"{BUILD}/ctl/meshctl", "check", "-o", "json"], check=False, timeout=150)
        return {(one["id"], one["object"]) for one in json.loads(done.stdout)["findings"]}

    assert set(named.items()) <= found()
    cluster.delete("peerauthentication,authorizationpolicy,service", "nobody", namespace="victim")
    cluster.wait(lambda: not set(named.items()) & found(), 30, "nothing is found any more")


def forget(cluster, namespace, service):
    """Deletes a Service with all that was said in its name."""
    cluster.kubectl("delete", "service", "-n", namespace, service)
    cluster.kubectl("delete", "endpointslice", "-n", namespace, "-l", f"kubernetes.io/service-name={service}")


def test_endpoint_slices_that_disagree_about_a_pod_bring_no_plaintext_and_no_other_identity(cluster, mesh, victim):
    """One of another namespace, and two of the pod's own that put it on different nodes."""
    pod = victim[1]
    before = generations(mesh)
    cluster.apply([bare_service("forged", "villain", [{"name": "http", "port": 80, "targetPort": 8080}]),
                   slice_of("forged", "villain", "forged", pod.ipv4, "node3", pod)])
    in_force(cluster, mesh, before)
    with unharmed(cluster, victim):
        pass
    forget(cluster, "villain", "forged")
    before = generations(mesh)
    cluster.apply([{**bare_service("torn", "victim", [{"name": "http", "port": 80, "targetPort": 8080}]), "spec": {
        "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}},
                   slice_of("torn-1", "victim", "torn", pod.ipv4, "node1", pod),
                   slice_of("torn-2", "victim", "torn", pod.ipv4, "node3", pod)])
    in_force(cluster, mesh, before)
    with unharmed(cluster, victim):
        assert ask(victim[0], "http://torn/private")["pod"] == pod.name
    before = generations(mesh)
    forget(cluster, "victim", "torn")
    in_force(cluster, mesh, before)


def forged_slice(pod, node, number):
    return {"apiVersion": "nodemesh.dev/v1alpha1", "kind": "WorkloadSlice", "metadata": {"name": f"{node}-{number}"}, "spec": {
        "node": node, "templates": [{"namespace": pod.namespace, "serviceAccount": "default"}],
        "pods": [{"uid": pod.uid, "name": pod.name, "ips": pod.addresses, "template": 0, "state": "none"}]}}


def test_a_workload_slice_that_names_another_nodes_pods_is_refused_by_admission_and_without_it_by_every_reader(
        cluster, mesh, victim):
    pod = victim[1]
    with pytest.raises(RuntimeError, match="only the nodemesh agent of the node and the nodemesh controller may write"):
        cluster.apply(forged_slice(pod, "node9", 0))
    path = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings"
    kept = cluster.api.get(f"{path}/workloadslices.nodemesh.dev")
    cluster.api.request("DELETE", f"{path}/workloadslices.nodemesh.dev")
    try:
        def written():
            with contextlib.suppress(RuntimeError):  # the API server goes on refusing for a moment
                cluster.apply(forged_slice(pod, "node9", 0))
                return True
        cluster.wait(written, 60, "admission lets it pass")
        logged(cluster, mesh, "node9-0", f"names {pod.ipv4}, which is on node", "not believed", nodes=("node1", "node3"))
        logged(cluster, mesh, "node9-0", f"names {pod.ipv4}, which is a pod's of this node", nodes=("node2",))
        with unharmed(cluster, victim):
            pass
        # In the name of a node that has an agent, the agent takes it back.
        cluster.apply(forged_slice(pod, "node1", 77))
        slices = "/apis/nodemesh.dev/v1alpha1/workloadslices"
        cluster.wait(lambda: "node1-77" not in [one["metadata"]["name"] for one in cluster.api.get(slices)["items"]
                                                if one["spec"].get("pods")], 30, "node 1 takes its slice back")
        with unharmed(cluster, victim):
            pass
    finally:
        cluster.kubectl("delete", "workloadslice", "node9-0", "--ignore-not-found")
        kept["metadata"] = {key: kept["metadata"][key] for key in ("name", "labels", "annotations") if key in kept["metadata"]}
        cluster.api.request("POST", path, kept)


class Authority:
    """The controller's CA as anything in the cluster's network can ask it."""

    def __init__(self, cluster, agent):
        self.cluster, self.agent = cluster, agent
        self.address = cluster.api.get(f"/api/v1/namespaces/{NAMESPACE}/services/nodemesh-controller")["spec"]["clusterIP"]
        self.roots = cluster.api.get(f"/api/v1/namespaces/{NAMESPACE}/configmaps/nodemesh-root-cert")["data"]["root-cert.pem"]

    def token(self, audience, pod=None, account="nodemesh-agent"):
        pod = pod or self.agent
        return self.cluster.kubectl("create", "token", account, "-n", pod.namespace, "--audience", audience,
                                    "--bound-object-kind", "Pod", "--bound-object-name", pod.name).strip()

    def ask(self, token, identity):
        with netns.entered(self.cluster.netns), CaClient(
                15012, self.roots, f"nodemesh-controller.{NAMESPACE}.svc", None, host=self.address) as client:
            return client.ask(token, identity)


def refusals(cluster):
    """The lines about refused certificates in the logs of all controllers."""
    pods = cluster.pods("app.kubernetes.io/component=controller", NAMESPACE)
    return [line for pod in pods for line in pod.logs().splitlines() if "certificate refused" in line]


def refusal_events(cluster, pod, account):
    """The notes of the Events on a Pod about a certificate for victim's service account that it was refused."""
    found = cluster.api.get(f"/apis/events.k8s.io/v1/namespaces/{pod.namespace}/events")["items"]
    return [one["note"] for one in found if one["regarding"].get("uid") == pod.uid and one["type"] == "Warning"
            and one["reason"] == "CertificateRefused" and f"victim/{account}" in one["note"]]


def test_the_authority_refuses_other_audiences_and_identities_that_have_no_pod_on_the_callers_node(cluster, mesh, victim):
    agent = mesh.agents()[0]
    ca = Authority(cluster, agent)
    cluster.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "elsewhere", "namespace": "victim"}})
    cluster.apply(workloads.pod("elsewhere", "victim", workloads.pod_spec(
        workloads.echo_container(), nodeName="node2", serviceAccountName="elsewhere")))
    cluster.ready_pods("app=elsewhere", "victim")
    here, there = (f"spiffe://cluster.local/ns/victim/sa/{name}" for name in ("default", "elsewhere"))
    good = ca.token("istio-ca")
    assert ca.ask(good, here)[0].startswith("-----BEGIN CERTIFICATE")
    villain, = cluster.ready_pods("app=echo", "villain")
    cases = {  # by what the log calls it
        "token_rejected": (ca.token("https://kubernetes.default.svc.cluster.local"), here),
        "no_pod_on_node": (good, there),
        "not_an_agent": (ca.token("istio-ca", villain, "default"), here),
    }
    for reason, (token, identity) in cases.items():
        before = len([line for line in refusals(cluster) if reason in line and identity in line])
        with pytest.raises(Refused) as refused:
            ca.ask(token, identity)
        assert refused.value.code == 16 and reason not in refused.value.message and identity not in refused.value.message
        cluster.wait(lambda reason=reason, identity=identity, before=before: len(
            [line for line in refusals(cluster) if reason in line and identity in line]) > before, 20, f"{reason} is logged")
    # Who asked for what it may not have sees it by `kubectl describe`; whom a bad token names is not accused.
    for caller, account in ((agent, "elsewhere"), (villain, "default")):
        cluster.wait(lambda caller=caller, account=account: refusal_events(cluster, caller, account), 20, "an Event on it")
        assert "CertificateRefused" in cluster.kubectl("describe", "pod", "-n", caller.namespace, caller.name)
    assert not refusal_events(cluster, agent, "default")
    cluster.delete("pod", "elsewhere", namespace="victim")


def test_annotations_and_rules_as_large_as_the_api_server_takes_harm_nobody(cluster, mesh, victim):
    large = {f"villain.example/{number}": "x" * 10000 for number in range(26)}  # 256 KiB are the API server's limit
    principals = [f"cluster.local/ns/villain/sa/{'a' * 60}-{number}" for number in range(12000)]  # 1 MB
    things = {
        "/api/v1/namespaces/villain/services": bare_service("large", "villain", [{"port": 80, "targetPort": 8080}]),
        "/apis/security.istio.io/v1/namespaces/villain/peerauthentications": {
            "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "spec": {"mtls": {"mode": "PERMISSIVE"}}},
        "/apis/security.istio.io/v1/namespaces/villain/authorizationpolicies": {
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "spec": {"action": "DENY", "rules": [{"from": [{"source": {"principals": principals}}]}]}},
        "/api/v1/namespaces/villain/pods": workloads.pod("large", "villain", workloads.pod_spec(workloads.echo_container())),
        "/apis/discovery.k8s.io/v1/namespaces/villain/endpointslices": {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": [], "ports": []},
    }
    before = generations(mesh)
    with unharmed(cluster, victim):
        for path, thing in things.items():
            meta = {**thing.get("metadata", {}), "name": "large", "namespace": "villain"}
            meta["annotations"] = {} if path.endswith("policies") else large
            cluster.api.request("POST", path, {**thing, "metadata": meta})
        cluster.kubectl("annotate", "namespace", "villain", *(f"{key}={value}" for key, value in large.items()))
        in_force(cluster, mesh, before)
        big, = cluster.ready_pods("app=large", "villain")
        assert cluster.wait(lambda: ask(victim[0], f"http://{big.ipv4}:8080/"), 30)["pod"] == "large"
    assert sum(agent.restarts for agent in mesh.agents()) == 0
    for path in things:
        cluster.api.request("DELETE", f"{path}/large")


def crowd(number):
    """One of many objects of a tenant."""
    kind, name = number % 3, f"crowd-{number}"
    if kind == 0:
        return "/api/v1/namespaces/crowd/services", bare_service(name, "crowd", [{"name": "http", "port": 80}])
    if kind == 1:
        address = f"192.0.2.{number % 250 + 1}"
        return "/apis/discovery.k8s.io/v1/namespaces/crowd/endpointslices", {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "metadata": {"name": name, "labels": {
                "kubernetes.io/service-name": f"crowd-{number - 1}"}}, "ports": [{"name": "http", "port": 8080}],
            "endpoints": [{"addresses": [address]}]}
    return "/apis/security.istio.io/v1/namespaces/crowd/authorizationpolicies", {
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": name}, "spec": {
            "selector": {"matchLabels": {"app": name}}, "action": "DENY", "rules": [
                {"from": [{"source": {"namespaces": [f"nobody-{number}"]}}]}]}}


def fill(cluster, numbers):
    api = Api(cluster.plan, cluster.netns)
    for number in numbers:
        path, thing = crowd(number)
        api.request("POST", path, thing)
    api.close()


def test_thousands_of_objects_of_one_tenant_do_not_hold_up_anothers_changes(cluster, mesh, victim, capsys):
    server = victim[1]
    url, policies = f"http://{server.ipv4}:8080/healthz", "/apis/security.istio.io/v1/namespaces/victim/authorizationpolicies"
    shut = {"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "shut"}, "spec": {}}

    def change():
        """Seconds until victim's policy is in force, and until it is not any more."""
        for wanted in ("", "ok\n"):
            started = time.monotonic()
            if wanted:
                cluster.api.request("DELETE", f"{policies}/shut")
            else:
                cluster.api.request("POST", policies, shut)
            cluster.wait(lambda wanted=wanted: cluster.reach(url).stdout == wanted, 60, "victim's change is in force")
            yield time.monotonic() - started

    at_rest = [seconds for _ in range(3) for seconds in change()]
    started = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        filling = [pool.submit(fill, cluster, range(first, OBJECTS, 2)) for first in (0, 1)]
        meanwhile = []
        while not all(one.done() for one in filling):
            meanwhile += change()
        for one in filling:
            one.result()
    filled = time.monotonic() - started
    after = [seconds for _ in range(3) for seconds in change()]
    with capsys.disabled():
        print(f"\n  {OBJECTS} objects in {filled:.0f} s; a change of another namespace is in force after "
              f"{max(at_rest):.1f} s at most before, {max(meanwhile):.1f} s meanwhile ({len(meanwhile)} changes), {max(after):.1f} s after")
    assert max(meanwhile + after) < 10 * FACTOR
    with unharmed(cluster, victim):
        pass
    assert sum(agent.restarts for agent in mesh.agents()) == 0


def test_a_crd_that_is_removed_while_agents_run_takes_its_objects_along_and_nothing_else(cluster, mesh, chart, victim):
    text = cluster.helm("show", "crds", chart)
    name = "peerauthentications.security.istio.io"
    cluster.apply({"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
                   "metadata": {"name": "default", "namespace": "victim"}, "spec": {"mtls": {"mode": "STRICT"}}})
    url = f"http://{victim[1].ipv4}:8080/healthz"
    cluster.wait(lambda: not cluster.reach(url).stdout, 30, "STRICT is in force")
    cluster.kubectl("delete", "crd", name)
    try:
        cluster.wait(lambda: cluster.reach(url).stdout, 60, "with its kind the policy is gone")
        with unharmed(cluster, victim):
            pass
        assert sum(agent.restarts for agent in mesh.agents()) == 0
    finally:
        cluster.apply([one for one in yaml.safe_load_all(text) if one and one["metadata"]["name"] == name])
    strict = {"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": {"name": "default"},
              "spec": {"mtls": {"mode": "STRICT"}}}
    path = "/apis/security.istio.io/v1/namespaces/victim/peerauthentications"
    cluster.wait(lambda: cluster.api.request("POST", path, strict), 30, "the kind is back")
    cluster.wait(lambda: not cluster.reach(url).stdout, 60, "a policy of the new kind is in force")
