"""What goes on while something of the cluster is away: the API server for a minute, with certificates of 30 seconds and
agents that are restarted in that minute; the controller, or the one of its replicas that leads; an agent's rights; the CRD
of WorkloadSlices; and while the mesh is given another root. Judged by walkers: pods that ask servers on other nodes all the
time, by new connections and by one that stays."""

import base64
import json
import os
import subprocess
import time

import certificates
import prometheus
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from minicluster import workloads
from minicluster.plan import bracketed

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.environ.get("NODEMESH_BUILD_DIR") or f"{ROOT}/build/release"
SYSTEM, SHOP = "nodemesh-outage", "outage"
SLICES = "workloadslices.nodemesh.dev"
SECONDS = int(os.environ.get("NODEMESH_OUTAGE_SECONDS", "60"))  # without the API server; scripts/bench outage: 300

WALKER = r"""
import http.client, json, sys, threading, time
def walk(target, kept):
    connection = None
    while True:
        begun, error = time.time(), ""
        try:
            connection = connection or http.client.HTTPConnection(target, 8080, timeout=20)
            connection.request("GET", "/walk")
            answer = connection.getresponse()
            answer.read()
            error = "" if answer.status == 200 else str(answer.status)
        except Exception as problem:
            error = repr(problem)
        with lock:
            out.write(json.dumps([target, kept, begun, time.time() - begun, error]) + "\n")
            out.flush()
        if error or not kept:
            connection.close()
            connection = None
        time.sleep(0.1)
lock, out = threading.Lock(), open("/tmp/walk", "a")
for target in sys.argv[1:]:
    for kept in (False, True):
        threading.Thread(target=walk, args=(target, kept), daemon=True).start()
threading.Event().wait()
"""


@pytest.fixture(scope="module")
def mesh(cluster, tmp_path_factory):
    """The installed mesh with certificates of 30 seconds; an echo server on each node, walkers on the first two."""
    folder = tmp_path_factory.mktemp("outage")
    subprocess.run([f"{ROOT}/scripts/chart", "--output", folder / "nodemesh.tgz"], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([f"{ROOT}/scripts/image", "--build-dir", BUILD, "--output", folder / "nodemesh.tar"], check=True,
                   stdout=subprocess.DEVNULL)
    cluster.load_image(folder / "nodemesh.tar")
    hybrid = ["-f", f"{ROOT}/charts/nodemesh/profiles/test.yaml"]
    values = hybrid if cluster.plan.cgroup == 1 else ["--set", "image.pullPolicy=Never"]
    cluster.apply([workloads.namespace(SHOP, {"istio.io/dataplane-mode": "ambient"})])
    cluster.helm("install", "nodemesh", folder / "nodemesh.tgz", "--namespace", SYSTEM, "--create-namespace", *values,
                 "--set", "agent.proxy.certificateLifetime=30s,controller.maxCertificateLifetime=30s",
                 "--set", "controller.rotationOverlap=30s")
    try:
        made = Mesh(cluster)
        made.agents()
        cluster.apply(workloads.echo("echo", SHOP))
        servers = cluster.ready_pods("app=echo", SHOP, count=3, seconds=90)
        for number in (1, 2):
            targets = [server.ipv4 or server.ipv6 for server in servers if server.node_name != f"node{number}"]
            spec = workloads.pod_spec(workloads.container("tools", command=["python3", "-c", WALKER, *targets]),
                                      nodeName=f"node{number}")
            cluster.apply(workloads.pod(f"walker{number}", SHOP, spec, {"role": "walker"}))
        made.walkers = cluster.ready_pods("role=walker", SHOP, count=2)
        made.servers, made.began = servers, time.time()
        made.walk_well()
        yield made
    finally:
        cluster.helm("uninstall", "nodemesh", "--namespace", SYSTEM)
        cluster.wait(lambda: not cluster.pods(namespace=SYSTEM), 120, "the mesh's pods have ended")
        cluster.delete("namespace", SHOP, SYSTEM)


class Mesh:
    def __init__(self, cluster):
        self.cluster = cluster

    def agents(self):
        return self.cluster.ready_pods("app.kubernetes.io/component=agent", SYSTEM, count=3, seconds=120)

    def page(self, agent):
        done = self.cluster.reach(f"http://{bracketed(agent.addresses[0])}:15020/metrics")
        return prometheus.Page(done.stdout) if done.returncode == 0 else None

    def value(self, agent, metric, **labels):
        """Of a metric of an agent; None while it does not answer."""
        page = self.page(agent)
        return page.sum(metric, **labels) if page else None

    def source(self, agent):
        page = self.page(agent)
        names = ("folder", "api", "snapshot")
        return next((name for name in names if page.sum("nodemesh_config_source", source=name) == 1), None) if page else None

    def ask(self, agent, *words):
        """meshctl's answer as JSON, asked within the agent's proxy container."""
        text = agent.exec(["meshctl", "--admin", "unix:/run/nodemesh/admin.sock", "-o", "json", *words], container="proxy",
                          check=False)
        return json.loads(text)["items"]

    def kill(self, agent, program, supervised):
        """Kills the processes of an agent's program: those that its supervisors started, or the supervisors too."""
        node = next(node for node in self.cluster.nodes if node.name == agent.node_name)
        look = (f'for p in /proc/[0-9]*; do [ "$(readlink $p/exe)" = /usr/bin/{program} ] && '
                'echo "${p#/proc/} $(tr "\\0" " " < $p/cmdline)"; done; true')
        found = [line.split(None, 1) for line in node.run(["sh", "-c", look]).stdout.splitlines()]
        chosen = [pid for pid, words in found if "--no-supervisor" in words or not supervised]
        assert chosen, found
        node.run(["kill", "-9", *chosen])

    def walks(self, since):
        """[(walker's node, target, kept, begun, seconds, error)] of the requests that began after `since`."""
        out = []
        for walker in self.walkers:
            for line in walker.exec(["cat", "/tmp/walk"]).splitlines():
                target, kept, begun, lasted, error = json.loads(line)
                if begun >= since:
                    out.append((walker.node_name, target, kept, begun, lasted, error))
        return out

    def walk_well(self, seconds=90):
        """Waits until each walker has had a good answer from each server on both ways, and no bad one after it."""
        since = time.time()

        def well():
            walks = self.walks(since)
            last = {walk[:3]: walk[5] for walk in walks}
            return len(last) == 8 and not any(last.values())

        self.cluster.wait(well, seconds, lambda: f"all walkers are served: {[w for w in self.walks(since) if w[5]][-5:]}")

    def server_on(self, node):
        return next(server for server in self.servers if server.node_name == node)


def failures(walks):
    return [walk for walk in walks if walk[5]]


def test_a_minute_without_the_api_server_costs_nothing_but_the_connections_of_an_agent_that_is_killed(cluster, mesh):
    one, _, three = agents = mesh.agents()
    assert [mesh.source(agent) for agent in agents] == ["api"] * 3
    before = {agent.uid: agent.restarts for agent in agents}
    lost = mesh.server_on("node3")
    lost_address = lost.ipv4 or lost.ipv6
    begun = time.time()
    with cluster.without("kube-apiserver"):
        until = time.monotonic() + SECONDS
        # The proxy alone, which its supervisor starts again: it has its keys from the warden, and the rest from its file.
        killed = time.time()
        mesh.kill(one, "nodemesh-proxy", supervised=True)
        cluster.wait(lambda: mesh.source(one) == "snapshot", 30, "node1's proxy serves its snapshot")
        # Both containers of a pod, which kubelet starts again: the keys are gone, and the controller gives new ones.
        mesh.kill(three, "nodemesh-proxy", supervised=False)
        mesh.kill(three, "nodemesh-warden", supervised=False)
        cluster.wait(lambda: mesh.source(three) == "snapshot", 60, "node3's agent serves its snapshot")
        assert mesh.value(three, "nodemesh_config_troubles") > 0
        # etcd forgets what watches would resume from.
        revision = json.loads(cluster.run(["curl", "-sS", "http://127.0.0.1:2379/v3/kv/range", "-d", '{"key": "AA=="}']).stdout)
        compaction = json.dumps({"revision": revision["header"]["revision"], "physical": True})
        cluster.run(["curl", "-sSf", "http://127.0.0.1:2379/v3/kv/compaction", "-d", compaction])
        cluster.wait(lambda: time.monotonic() >= until, SECONDS + 10, "the time is over")
        assert mesh.value(one, "nodemesh_config_contact_age_seconds") >= SECONDS - 10
    cluster.wait(lambda: all(mesh.source(agent) == "api" for agent in mesh.agents()), 90, "all read the API server again")
    mesh.walk_well()
    after = {agent.uid: agent.restarts for agent in mesh.agents()}
    assert before.keys() == after.keys()
    walks = mesh.walks(begun)
    elsewhere = [walk for walk in walks if walk[1] != lost_address]
    # What was under way at the killed proxy: at most one request of each walker or to each server there.
    cut = [walk for walk in failures(elsewhere) if walk[3] <= killed + 2]
    print(f"{len(walks)} requests; failed: {len(failures(elsewhere))} ({len(cut)} under way at the killed proxy), and "
          f"{len(failures(walks)) - len(failures(elsewhere))} to the node whose agent began anew")
    assert len(elsewhere) > 500 and len(cut) <= 8
    assert failures(elsewhere) == cut


def test_without_its_controller_the_mesh_serves_to_the_end_of_its_certificates_and_recovers(cluster, mesh):
    mesh.walk_well()
    agents = mesh.agents()
    cluster.kubectl("scale", "-n", SYSTEM, "deployment/nodemesh-controller", "--replicas=0")
    gone = time.time()
    try:
        cluster.wait(lambda: not cluster.pods("app.kubernetes.io/component=controller", SYSTEM), 60, "no controller is left")
        expiry = min(sample.value for agent in agents
                     for sample in mesh.page(agent).select("nodemesh_certificate_expiry_seconds"))
        cluster.wait(lambda: failures(mesh.walks(gone)), 60, "the certificates have ended")
        assert min(walk[3] for walk in failures(mesh.walks(gone))) >= expiry - 1
        ended = [cert for agent in agents for cert in mesh.ask(agent, "get", "certs") if cert["state"] == "expired"]
        assert ended and all(cert["error"] for cert in ended)
    finally:
        cluster.kubectl("scale", "-n", SYSTEM, "deployment/nodemesh-controller", "--replicas=2")
    mesh.walk_well(120)


def test_an_agent_without_its_rights_serves_on_says_what_it_lacks_and_recovers(cluster, mesh):
    mesh.walk_well()
    agent = mesh.agents()[0]
    name = next(thing["metadata"]["name"] for thing in
                cluster.api.get("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings")["items"]
                if any(subject.get("namespace") == SYSTEM and subject["name"] == "nodemesh-agent"
                       for subject in thing.get("subjects", [])))
    binding = cluster.api.get(f"/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/{name}")
    binding["metadata"] = {key: binding["metadata"][key] for key in ("name", "labels", "annotations")
                           if key in binding["metadata"]}
    cluster.kubectl("delete", "clusterrolebinding", name)
    begun = time.time()
    try:
        mesh.kill(agent, "nodemesh-proxy", supervised=True)
        cluster.wait(lambda: mesh.source(agent) == "snapshot", 60, "the proxy serves its snapshot")
        assert mesh.value(agent, "nodemesh_config_troubles") > 5
        assert "the API server refuses to show a resource" in agent.logs("proxy")
        config = mesh.ask(agent, "status")[0]["config"]
        assert config["source"] == "snapshot" and any("no right to list and watch pods" in text for text in config["troubles"])
        assert cluster.reach(f"http://{bracketed(agent.addresses[0])}:15021/healthz/ready").stdout == "ready\n"
        mesh.walk_well()
    finally:
        cluster.apply(binding)
    cluster.wait(lambda: mesh.source(agent) == "api", 120, "the proxy reads the API server again")
    assert len(failures(mesh.walks(begun))) <= 8
    mesh.walk_well()


def test_while_the_crd_of_slices_is_gone_pods_talk_on_and_agents_say_so(cluster, mesh):
    mesh.walk_well()
    agent = mesh.agents()[0]
    crd = cluster.api.get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{SLICES}")
    crd["metadata"] = {key: crd["metadata"][key] for key in ("name", "labels", "annotations") if key in crd["metadata"]}
    del crd["status"]
    begun = time.time()
    cluster.kubectl("delete", "crd", SLICES)
    try:
        cluster.wait(lambda: mesh.value(agent, "nodemesh_slices_failed") == 1, 60, "node1 cannot write its slices")
        mesh.walk_well()
    finally:
        cluster.apply(crd)
    cluster.wait(lambda: mesh.value(agent, "nodemesh_slices_failed") == 0, 120, "node1 has written its slices")

    def whole():
        slices = cluster.api.get("/apis/nodemesh.dev/v1alpha1/workloadslices")["items"]
        return {thing["spec"]["node"] for thing in slices} == {"node1", "node2", "node3"}

    cluster.wait(whole, 60, "every node has slices again")
    mesh.walk_well()
    assert not failures(mesh.walks(begun))


def renewed(cluster, mesh, since):
    """Waits until every certificate that agents hold was signed after `since`."""
    def young():
        pages = [mesh.page(agent) for agent in mesh.agents()]
        return all(pages) and all(sample.value > since + 30 for page in pages
                                  for sample in page.select("nodemesh_certificate_expiry_seconds"))

    cluster.wait(young, 60, "all certificates are renewed")


def lease(cluster):
    return cluster.api.get(f"/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases/nodemesh-controller")["spec"]


def test_when_the_leader_is_killed_another_replica_judges_policies_and_certificates_are_signed_meanwhile(cluster, mesh):
    mesh.walk_well()
    controllers = cluster.ready_pods("app.kubernetes.io/component=controller", SYSTEM, count=2, seconds=90)
    leader, = (pod for pod in controllers if pod.name == cluster.wait(lambda: lease(cluster)["holderIdentity"], 30, "a leader"))
    node = next(node for node in cluster.nodes if node.name == leader.node_name)
    begun = time.time()
    # Stopped first: what is asked to end gives the Lease up at once, and what kubelet starts again holds it still.
    node.run(["sh", "-c", 'for p in /proc/[0-9]*; do [ "$(readlink $p/exe)" = /usr/bin/nodemesh-controller ] && '
              f'grep -q {leader.uid} $p/cgroup && kill -STOP "${{p#/proc/}}" && echo stopped; done; true'])
    cluster.kubectl("delete", "pod", "-n", SYSTEM, leader.name, "--force", "--grace-period=0")
    policies = f"/apis/security.istio.io/v1/namespaces/{SHOP}/authorizationpolicies"
    cluster.apply({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
                   "metadata": {"name": "unled", "namespace": SHOP}, "spec": {
                       "action": "DENY", "rules": [{"from": [{"source": {"ipBlocks": ["10.255.0.0/16"]}}]}]}})
    # The Lease lasts 15 s, and who waits for it looks every 2 s.
    cluster.wait(lambda: [one["status"] for one in cluster.api.get(f"{policies}/unled").get("status", {}).get("conditions", [])
                          if one["type"] == "nodemesh.dev/Accepted"] == ["True"], 25, "the policy is judged")
    assert lease(cluster)["holderIdentity"] not in ("", leader.name)
    renewed(cluster, mesh, begun)
    cluster.ready_pods("app.kubernetes.io/component=controller", SYSTEM, count=2, seconds=90)
    mesh.walk_well()
    assert not failures(mesh.walks(begun))
    cluster.api.request("DELETE", f"{policies}/unled")


def test_a_root_that_is_plugged_in_takes_over_under_load_and_no_request_fails(cluster, mesh, tmp_path):
    mesh.walk_well()
    # The connections that stay have outlived the certificates that they were made with.
    opened = max([mesh.began, *(walk[3] for walk in failures(mesh.walks(0)))])
    cluster.wait(lambda: time.time() > opened + 35, 40, "their certificates have ended")
    begun = time.time()

    def certificate(text):
        """Of what follows the first -----BEGIN."""
        body = text.partition("-----END")[0]
        return x509.load_pem_x509_certificate(f"-----BEGIN{body}-----END CERTIFICATE-----\n".encode())

    def roots():
        data = cluster.api.get(f"/api/v1/namespaces/{SYSTEM}/configmaps/nodemesh-root-cert")["data"]["root-cert.pem"]
        return {certificate(text).subject for text in data.split("-----BEGIN")[1:]}

    def issuers():
        """Who signed what the servers' nodes show anybody who connects."""
        for server in mesh.servers:
            done = cluster.run(["openssl", "s_client", "-connect", f"{bracketed(server.addresses[0])}:15008",
                                "-alpn", "h2"], input="", check=False)
            yield certificate(done.stdout.partition("-----BEGIN")[2]).issuer

    old, = roots()
    assert set(issuers()) == {old}
    plugged = certificates.Authority.stranger(tmp_path, "plugged in")
    new, pem = plugged.certificate.subject, plugged.certificate.public_bytes(serialization.Encoding.PEM).decode()
    key = plugged.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                    serialization.NoEncryption()).decode()
    cluster.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "cacerts", "namespace": SYSTEM}, "stringData": {
        "ca-cert.pem": pem, "ca-key.pem": key, "root-cert.pem": pem, "cert-chain.pem": ""}})
    cluster.wait(lambda: roots() == {old, new}, 40, "both roots are published")
    assert set(issuers()) == {old}, "the new root signs before everybody trusts it"
    cluster.wait(lambda: set(issuers()) == {new}, 90, "the new root has signed all certificates")
    assert roots() == {old, new}
    mesh.walk_well()
    assert len(mesh.walks(begun)) > 500 and not failures(mesh.walks(begun))
    # The old root is trusted for five minutes more, for clocks that differ: here they end now.
    path = f"/api/v1/namespaces/{SYSTEM}/secrets/nodemesh-ca"
    assert "retired-until" in cluster.api.get(path)["data"]
    ended = base64.b64encode(b"2020-01-01T00:00:00Z").decode()
    cluster.api.raw("PATCH", path, {"data": {"retired-until": ended}}, "application/merge-patch+json")
    cluster.wait(lambda: roots() == {new}, 40, "the old root is gone")
    renewed(cluster, mesh, time.time())
    mesh.walk_well()
    # Connections from before the change are proven by the old root alone: they end with it, and are made again.
    ended = [walk[:3] for walk in failures(mesh.walks(begun))]
    assert len(ended) == len(set(ended)) and all(kept for _, _, kept in ended), ended
