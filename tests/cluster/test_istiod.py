"""istiod as the certificate authority: Istio's own program and chart, and of nodemesh's values one, `ca.address`.
The tests stand in an order: at first agents have the wrong roots, at the end istiod is gone."""

import json
import re

import certificates
import netns
import pytest
from ca_client import CaClient, Refused
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import padding
from minicluster import istio, workloads
from minicluster.api import ApiError
from minicluster.istio import Istiod
from minicluster.mesh import BUILD, LABEL, NAMESPACE, Mesh, Wires, ask

AUTHORITY = "istiod.istio-system.svc"
# One renewal passes while the tests run, and half of it is left for what comes after istiod's end.
VALUES = ("--set", f"ca.address={AUTHORITY}:15012", "--set", "agent.proxy.certificateLifetime=60s",
          "--set", "agent.rollingUpdate.maxSurge=3")
STRANGER = ("--set", "ca.rootConfigMap=stranger")


@pytest.fixture(scope="module")
def istiod(cluster):
    with Istiod.installed(cluster, "--set", f"env.CA_TRUSTED_NODE_ACCOUNTS={NAMESPACE}/nodemesh-agent") as made:
        yield made


@pytest.fixture(scope="module")
def mesh(cluster, chart, image, istiod, tmp_path_factory):
    """With the roots of somebody else, until a test mends it."""
    with open(certificates.Authority.stranger(tmp_path_factory.mktemp("stranger")).root_file, encoding="ascii") as source:
        roots = source.read()
    cluster.apply([workloads.namespace(NAMESPACE), {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {
        "name": "stranger", "namespace": NAMESPACE}, "data": {"root-cert.pem": roots}}])
    with Mesh.installed(cluster, chart, image, *VALUES, *STRANGER) as made:
        made.agents()
        yield made
    cluster.delete("namespace", "harbour")


@pytest.fixture(scope="module")
def pods(cluster, mesh):
    """An echo pod on each node, in the mesh, by node."""
    cluster.apply([workloads.namespace("harbour", {LABEL: "ambient"}), *workloads.echo("echo", "harbour")])
    return cluster.ready_pods("app=echo", "harbour", count=3)


def account(name):
    return f"spiffe://cluster.local/ns/harbour/sa/{name}"


def check(cluster):
    """{id: findings} of `meshctl check`."""
    done = cluster.run([f"{BUILD}/ctl/meshctl", "check", "-o", "json"], check=False, timeout=150)
    out = {}
    for finding in json.loads(done.stdout)["findings"]:
        out.setdefault(finding["id"], []).append(finding)
    return out


def talk(pods):
    return all(ask(client, f"http://{server.ipv4}:8080/secret") for client in pods for server in pods)


def shown(cluster, pod):
    """The certificate that a pod shows at 15008 to somebody who has none."""
    done = cluster.run(["openssl", "s_client", "-connect", f"{pod.ipv4}:15008", "-alpn", "h2"], check=False, input="")
    return x509.load_pem_x509_certificate(re.search("-----BEGIN.*?END CERTIFICATE-----", done.stdout, re.S)[0].encode())


def test_agents_whose_roots_do_not_vouch_for_istiod_deny_and_say_why_and_never_speak_plainly(cluster, mesh, pods):
    with Wires(cluster, pods) as wires:
        assert not any(ask(client, f"http://{server.ipv4}:8080/secret") for client in pods for server in pods if client != server)
    assert not wires.contains(b"/secret")
    why = f"the server's certificate is not good for {AUTHORITY} by "
    for agent in cluster.pods("app.kubernetes.io/component=agent", NAMESPACE):
        cluster.wait(lambda agent=agent: re.search(f"no certificate.*{account('default')}.*{why}", agent.logs("proxy")), 30,
                     "the log says why")
    assert all(why in one["message"] for one in check(cluster)["NM1231"])


def test_with_nothing_but_its_address_istiods_certificates_carry_the_mesh(cluster, mesh, istiod, pods):
    mesh.upgrade(*VALUES)
    cluster.wait(lambda: talk(pods), 120, "all pods talk")
    with Wires(cluster, pods) as wires:
        assert talk(pods)
    assert {version for report in wires.require_hbone_only() for version in report.versions} <= {"TLSv1.3"}
    assert not wires.contains(b"/secret")
    root = x509.load_pem_x509_certificate(istiod.root().encode())
    for pod in pods:
        leaf = shown(cluster, pod)
        root.public_key().verify(leaf.signature, leaf.tbs_certificate_bytes, padding.PKCS1v15(), leaf.signature_hash_algorithm)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == [account("default")]


def test_the_controller_signs_nothing_beside_istiod_and_goes_on_with_its_duties(cluster, mesh, pods):
    controllers = cluster.ready_pods("app.kubernetes.io/component=controller", NAMESPACE, count=2)
    assert not [line for one in controllers for line in one.logs().splitlines() if re.search("sign|bundle|Secret", line)]
    secrets = cluster.api.get(f"/api/v1/namespaces/{NAMESPACE}/secrets")["items"]
    assert "nodemesh-ca" not in [secret["metadata"]["name"] for secret in secrets]

    def marked():
        return all("nodemesh.dev/Enrolled" in [one["type"] for one in pod.object["status"]["conditions"] if one["status"] == "True"]
                   for pod in cluster.pods("app=echo", "harbour"))

    cluster.wait(marked, 60, "pods are marked")
    with pytest.raises(ApiError, match="no labels and no annotations"):
        cluster.api.raw("PATCH", f"/api/v1/namespaces/harbour/pods/{pods[0].name}/status",
                        {"metadata": {"annotations": {"ambient.istio.io/redirection": "enabled"}}},
                        "application/strategic-merge-patch+json", user=f"system:serviceaccount:{NAMESPACE}:nodemesh-controller")


def test_meshctl_check_finds_nothing_wrong_with_an_authority_that_is_not_ours(cluster, mesh, pods):
    mesh.agents()
    cluster.wait(lambda: "NM1204" not in check(cluster), 60, "the roll-out has ended")
    wrong = {number: found for number, found in check(cluster).items() if found[0]["severity"] != "info"}
    assert not wrong, wrong


def test_istiod_refuses_an_identity_of_another_node_and_agents_that_it_does_not_know(cluster, mesh, istiod, pods):
    cluster.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "elsewhere", "namespace": "harbour"}})
    cluster.apply(workloads.pod("elsewhere", "harbour", workloads.pod_spec(
        workloads.echo_container(), nodeName="node2", serviceAccountName="elsewhere")))
    cluster.ready_pods("app=elsewhere", "harbour")
    agent = mesh.agents()[0]
    token = cluster.kubectl("create", "token", "nodemesh-agent", "-n", NAMESPACE, "--audience", "istio-ca",
                            "--bound-object-kind", "Pod", "--bound-object-name", agent.name).strip()
    address = cluster.api.get(f"/api/v1/namespaces/{istio.NAMESPACE}/services/istiod")["spec"]["clusterIP"]
    with netns.entered(cluster.netns), CaClient(15012, istiod.root(), AUTHORITY, None, host=address) as client:
        assert client.ask(token, account("default"), cluster="Kubernetes")[0].startswith("-----BEGIN CERTIFICATE")
        for identity, name in ((account("elsewhere"), "Kubernetes"), (account("default"), "another"), (account("default"), None)):
            with pytest.raises(Refused) as refused:
                client.ask(token, identity, cluster=name)
            assert refused.value.code == 16
    assert re.search('no instances of "harbour/elsewhere" found on node "node1"', istiod.log())


def test_certificates_are_renewed_by_istiod_while_connections_go_on(cluster, mesh, pods):
    serials = {pod.name: shown(cluster, pod).serial_number for pod in pods}
    cluster.wait(lambda: all(shown(cluster, pod).serial_number != serials[pod.name] for pod in pods), 90, "all are renewed")
    assert talk(pods)


def test_without_istiod_what_it_signed_serves_on_and_new_identities_wait_and_say_so(cluster, mesh, istiod, pods):
    istiod.stop()
    cluster.apply([{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "late", "namespace": "harbour"}},
                   workloads.pod("late", "harbour", workloads.pod_spec(
                       workloads.echo_container(), nodeName="node1", serviceAccountName="late"))])
    with Wires(cluster, pods) as wires:
        assert talk(pods)
    wires.require_hbone_only()
    late, = cluster.ready_pods("app=late", "harbour")
    assert ask(late, f"http://{pods[1].ipv4}:8080/secret") is None
    cluster.wait(lambda: re.search(f"no certificate.*{account('late')}.*error=", mesh.log("node1")), 30, "the log says why")
