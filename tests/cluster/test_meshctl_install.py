"""nodemesh on the cluster by meshctl alone: installed without Helm, checked, broken in ways that `meshctl check` names,
upgraded, taken away without a trace; then once more by Helm. The tests stand in that order."""

import json
import os
import subprocess

import pytest
from minicluster import workloads
from minicluster.api import condition
from minicluster.mesh import crd, foreign_crd
from waiting import FACTOR

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.environ.get("NODEMESH_BUILD_DIR") or f"{ROOT}/build/release"
NAMESPACE = "nodemesh-system"
LABEL = "istio.io/dataplane-mode"
SCRAPED = {"prometheus.io/scrape": "true", "prometheus.io/port": "8080"}


class Meshctl:
    def __init__(self, cluster):
        self.cluster = cluster
        # Which nodes these are decides where their cgroup2 is.
        self.profile = "test" if cluster.plan.cgroup == 1 else "default"

    def run(self, *words, check=True, code=None):
        done = self.cluster.run([os.path.abspath(f"{BUILD}/ctl/meshctl"), *words], check=False, timeout=300)
        if code is not None:
            assert done.returncode == code, done.stdout + done.stderr
        elif check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def install(self, *words, **options):
        return self.run("install", "--no-helm", "--profile", self.profile, "--wait", str(int(120 * FACTOR)), *words, **options)

    def check(self, *words):
        """Findings that are more than a note, {id: objects}, and what was not checked."""
        text = self.run("check", "-o", "json", *words, check=False)
        found = json.loads(text)
        assert found["schema"] == 1
        serious = {}
        for one in found["findings"]:
            if one["severity"] != "info":
                serious.setdefault(one["id"], set()).add(one["object"])
        return serious, {one["id"]: one["why"] for one in found["not_checked"]}


@pytest.fixture(scope="module")
def meshctl(cluster):
    made = Meshctl(cluster)
    yield made
    made.run("uninstall", check=False)
    cluster.delete("namespace", "kiosk", "watch", NAMESPACE)


@pytest.fixture(scope="module")
def image(cluster, tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "nodemesh.tar"
    subprocess.run([f"{ROOT}/scripts/image", "--build-dir", BUILD, "--output", path], check=True, stdout=subprocess.DEVNULL)
    cluster.load_image(path)


@pytest.fixture(scope="module")
def crds(tmp_path_factory):
    path = tmp_path_factory.mktemp("crds") / "istio-crds.yaml"
    subprocess.run([f"{ROOT}/scripts/chart", "--crds", path], check=True, stdout=subprocess.DEVNULL)
    return path


@pytest.fixture(scope="module")
def foreign(cluster, crds):
    return foreign_crd(cluster, crds.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def installed(cluster, meshctl, image, crds, foreign):
    return meshctl.install("--crds", str(crds))


def test_before_an_installation_the_cluster_is_fit_for_it(meshctl):
    serious, left = meshctl.check("--pre")
    assert (serious, left) == ({}, {})


def test_a_dry_run_names_every_object_and_changes_nothing(cluster, meshctl):
    said = meshctl.install("--dry-run")
    assert "would be created: DaemonSet nodemesh-system/nodemesh-agent" in said
    assert "nodemesh-agent" not in cluster.kubectl("get", "daemonsets,clusterroles", "-A", "-o", "name")


def test_an_installation_without_helm_runs_and_is_clean(cluster, meshctl, installed):
    assert "by the manifests of profile" in installed and "waiting: " in installed
    cluster.ready_pods("app.kubernetes.io/component=agent", NAMESPACE, count=3, seconds=60)

    def clean():
        serious, _ = meshctl.check()
        return serious == {}  # slices and Lease are written a moment after the agents are ready

    cluster.wait(clean, 30, lambda: f"a clean check: {meshctl.check()}")
    _, left = meshctl.check()
    assert all("agent answered" in why for why in left.values()), left


def test_a_second_installation_changes_nothing(meshctl, installed):
    said = meshctl.install()
    assert "changed: " not in said.replace("unchanged: ", "") and "unchanged: DaemonSet" in said


@pytest.fixture(scope="module")
def kiosk(cluster, installed):
    """A namespace in the mesh that refuses strangers, and a scraper outside of it."""
    cluster.apply([workloads.namespace("kiosk", {LABEL: "ambient"}), workloads.namespace("watch"),
                   *workloads.echo("echo", "kiosk", replicas=2)])
    pods = cluster.ready_pods("app=echo", "kiosk", count=2, seconds=90)
    return pods


def test_pods_of_a_labelled_namespace_talk_by_mutual_tls(cluster, meshctl, kiosk):
    client, server = kiosk
    assert client.node_name != server.node_name

    def encrypted():
        with cluster.capture(next(node for node in cluster.nodes if node.name == client.node_name),
                             filter=["tcp", "and", "host", client.ipv4]) as capture:
            client.exec(["/echo", "get", f"http://{server.ipv4}:8080/secret"], check=False)
        report = capture.report()
        return report.contains(b"\x16\x03") and not report.contains(b"/secret")

    cluster.wait(encrypted, 60, "traffic is encrypted")


def test_what_is_broken_is_named_with_its_object(cluster, meshctl, kiosk):
    peer = {"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication"}
    scraped = workloads.pod("scraped", "kiosk", workloads.pod_spec(workloads.echo_container()))
    scraped["metadata"]["annotations"] = SCRAPED
    scraper = workloads.pod("prometheus", "watch", workloads.pod_spec(workloads.echo_container()))
    cluster.apply([{**peer, "metadata": {"name": "default", "namespace": "kiosk"}, "spec": {"mtls": {"mode": "STRICT"}}},
                   {**peer, "metadata": {"name": "nobody", "namespace": "kiosk"},
                    "spec": {"selector": {"matchLabels": {"app": "ehco"}}, "mtls": {"mode": "STRICT"}}},
                   scraped, scraper])
    cluster.kubectl("delete", "validatingadmissionpolicy", "workloadslices.nodemesh.dev")
    expected = {"NM1220": "ValidatingAdmissionPolicy workloadslices.nodemesh.dev", "NM1303": "PeerAuthentication kiosk/nobody",
                "NM1401": "Pod watch/prometheus"}

    def named():
        serious, _ = meshctl.check()
        return {name: {thing} for name, thing in expected.items()} == serious

    cluster.wait(named, 60, lambda: f"three findings and no other: {meshctl.check()}")
    text = meshctl.run("check", code=1)
    assert "NM1220 error" in text and "next: meshctl upgrade" in text
    cluster.delete("pod", "prometheus", namespace="watch")
    cluster.delete("peerauthentication", "nobody", namespace="kiosk")


def test_who_may_not_read_is_told_what_was_not_checked(cluster, meshctl, installed):
    token = cluster.kubectl("create", "token", "default", "-n", "default").strip()
    config = json.loads(cluster.kubectl("config", "view", "--raw", "--flatten", "-o", "json"))
    config["users"] = [{"name": "nobody", "user": {"token": token}}]
    config["contexts"] = [{"name": "nobody", "context": {"cluster": config["clusters"][0]["name"], "user": "nobody"}}]
    config["current-context"] = "nobody"
    path = f"{cluster.plan.state}/nobody.json"
    with open(path, "w", encoding="ascii") as out:
        json.dump(config, out)
    serious, left = meshctl.check("--kubeconfig", path)
    assert serious == {} and len(left) > 80 and left["NM1202"].startswith("no right to list ")


def test_an_upgrade_mends_what_is_gone_and_removes_what_the_profile_no_longer_has(cluster, meshctl, kiosk):
    stray = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {
        "name": "nodemesh-dashboard", "namespace": NAMESPACE, "labels": {"app.kubernetes.io/name": "nodemesh"}}}
    cluster.apply(stray)
    said = meshctl.run("upgrade", "--no-helm", "--profile", meshctl.profile, "--wait", str(int(120 * FACTOR)))
    assert "created: ValidatingAdmissionPolicy workloadslices.nodemesh.dev" in said
    assert "removed: ConfigMap nodemesh-system/nodemesh-dashboard" in said
    cluster.wait(lambda: meshctl.check()[0] == {}, 30, lambda: f"a clean check: {meshctl.check()}")


def test_uninstall_leaves_nothing_and_says_so_and_somebody_elses_crd_as_it_was(cluster, meshctl, kiosk, foreign):
    said = meshctl.run("uninstall", "--verify")
    assert "verified: nothing of nodemesh is left in the API; 3 agents ended by themselves" in said
    for node in cluster.nodes:
        assert "nodemesh" not in node.run(["ls", "/sys/fs/bpf"]).stdout
    kinds = cluster.kubectl("api-resources", "--verbs=list", "-o", "name").split()
    left = cluster.kubectl("get", ",".join(kinds), "-A", "-l", "app.kubernetes.io/name=nodemesh", "-o", "name",
                           "--ignore-not-found", check=False)
    assert left.strip() == "" and "workloadslices" not in " ".join(kinds)
    ours = cluster.kubectl("get", "secrets,configmaps,leases", "-n", NAMESPACE, "-o", "name", check=False)
    assert "nodemesh" not in ours.replace("kube-root-ca.crt", "")
    assert "NM1201" in meshctl.check()[0]
    assert crd(cluster) == foreign


def test_leftovers_are_listed_with_the_command_that_removes_them(cluster, meshctl):
    stray = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {
        "name": "kept", "namespace": NAMESPACE, "labels": {"app.kubernetes.io/name": "nodemesh"}, "finalizers": ["test/kept"]}}
    cluster.apply([workloads.namespace(NAMESPACE), stray])
    said = meshctl.run("uninstall", "--verify", "--wait", "3", code=1)
    assert "left: ConfigMap nodemesh-system/kept\n  remove: kubectl delete configmaps kept -n nodemesh-system" in said
    cluster.kubectl("patch", "configmap", "kept", "-n", NAMESPACE, "--type=merge", "-p", '{"metadata":{"finalizers":null}}')


def test_a_node_that_is_down_holds_uninstall_up_and_leaves_a_doubt_until_it_is_back(cluster, meshctl, image, crds):
    meshctl.install("--crds", str(crds))
    node = cluster.node(3)
    agent, = (pod for pod in cluster.pods("app.kubernetes.io/component=agent", NAMESPACE) if pod.node_name == node.name)
    node.power_off()
    try:
        cluster.wait(lambda: not condition(node.object(), "Ready"), 60, "the API server misses the node")
        said = meshctl.run("uninstall", "--verify", "--wait", "10", code=1)
        assert "not gone after 10 s: " in said and f"Node node3 is not ready: bring it back, or `kubectl delete pod {agent.name}" in said
        cluster.kubectl("delete", "pods", "-n", NAMESPACE, "--all", "--force")
        said = meshctl.run("uninstall", "--verify", code=1)
        assert "in doubt: Node node3: the node is not ready, so nobody saw its agent end" in said
        assert "/sys/fs/bpf/nodemesh" in said and "may be left" in said and "verified" not in said
    finally:
        node.power_on()
        node.wait_ready()
    assert "verified: nothing of nodemesh is left in the API" in meshctl.run("uninstall", "--verify")
    assert "nodemesh" not in node.run(["ls", "/sys/fs/bpf"]).stdout  # the kernel's memory did not survive the power failure


def test_with_helm_and_the_chart_meshctl_drives_helm_and_takes_its_release_away(cluster, meshctl, image, tmp_path):
    chart = tmp_path / "nodemesh.tgz"
    subprocess.run([f"{ROOT}/scripts/chart", "--output", chart], check=True, stdout=subprocess.DEVNULL)
    profile = ("--profile", meshctl.profile)
    said = meshctl.run("install", "--chart", str(chart), *profile, "--set", "agent.podLabels.round=one", "--wait", str(int(120 * FACTOR)))
    assert "STATUS: deployed" in said and "nodemesh runs in nodemesh-system" in said
    agents = cluster.ready_pods("app.kubernetes.io/component=agent", NAMESPACE, count=3)
    assert {agent.object["metadata"]["labels"]["round"] for agent in agents} == {"one"}
    assert "Helm has installed nodemesh" in meshctl.run("install", "--chart", str(chart), code=1)
    cluster.wait(lambda: meshctl.check()[0] == {}, 30, lambda: f"a clean check: {meshctl.check()}")
    said = meshctl.run("uninstall", "--verify")
    assert "by Helm: " in said and "verified: nothing of nodemesh is left" in said
    assert "nodemesh" not in cluster.helm("list", "--all", "-n", NAMESPACE)
