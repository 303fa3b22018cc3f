"""The controller on Kubernetes as a process: gRPC over TLS with an independent client, against a stand-in API server."""

import base64
import contextlib
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import urllib.error
import urllib.request

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

import certificates
import netns
import programs
from ca_client import CaClient, Refused
from kube_api import KubeApi
from lab import Lab
from waiting import FACTOR, wait_for

BUILD = os.environ.get("NODEMESH_BUILD_DIR") or os.path.join(os.path.dirname(__file__), "../../build/release")
WEB = "spiffe://cluster.local/ns/shop/sa/web"
DB = "spiffe://cluster.local/ns/shop/sa/db"
AGENT = "agent.token.one"
UNAVAILABLE, UNAUTHENTICATED = 14, 16


class Controller:
    """One replica."""

    def __init__(self, cluster, name, *extra):
        self.log = f"{cluster.folder}/{name}.log"
        command = [f"{BUILD}/controller/nodemesh-controller", "--kubernetes", "--kubeconfig", cluster.kubeconfig,
                   "--identity", name, "--ca-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0",
                   "--refresh", "1s", *extra]
        with open(self.log, "wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
        try:
            line = self.wait_log(r"controller started .*ca=(?:127\.0\.0\.1:(\d+)|none) admin=127\.0\.0\.1:(\d+)")
        except BaseException:
            self.stop()
            raise
        self.port, self.admin = int(line.group(1) or 0), int(line.group(2))

    def output(self):
        with open(self.log, encoding="utf-8", errors="replace") as log:
            return log.read()

    def wait_log(self, pattern, seconds=20):
        return wait_for(lambda: re.search(pattern, self.output()), seconds, lambda: f"{pattern} in:\n{self.output()}")

    def get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}{path}", timeout=10 * FACTOR) as answer:
            return answer.read().decode()

    def metric(self, name):
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.get("/metrics"), re.M)
        assert found, f"no {name} in\n{self.get('/metrics')}"
        return float(found.group(1))

    def ready(self):
        with contextlib.suppress(urllib.error.HTTPError):
            return self.get("/readyz") == "ready\n"
        return False

    def leads(self):
        return self.metric("nodemesh_controller_leader") == 1

    def stop(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(20 * FACTOR)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
        return self.process.returncode


class Cluster:
    """The API server, and what stands in it at first: an agent and a web pod on n1, a database on n2."""

    def __init__(self, folder):
        self.folder = folder
        self.authority = certificates.Authority.stranger(folder, "kubernetes")
        self.api = KubeApi(self.authority.issue(dns=["kubernetes.default"]), self.authority.root_file)
        self.kubeconfig = self.api.kubeconfig(f"{folder}/kubeconfig")
        self.controllers = []
        self.api.pod("mesh", "agent-1", "nodemesh-agent", "n1")
        self.api.pod("shop", "web-1", "web", "n1")
        self.api.pod("shop", "db-1", "db", "n2")
        self.api.tokens[AGENT] = ("system:serviceaccount:mesh:nodemesh-agent", "agent-1", "uid-agent-1", "istio-ca")
        self.api.tokens["web.token.one"] = ("system:serviceaccount:shop:web", "web-1", "uid-web-1", "istio-ca")
        self.api.tokens["other.audience.one"] = ("system:serviceaccount:mesh:nodemesh-agent", "agent-1", "uid-agent-1",
                                                 "https://kubernetes.default.svc")

    def start(self, name="ctl-1", *extra):
        controller = Controller(self, name, *extra)
        self.controllers.append(controller)
        wait_for(controller.ready, 20, lambda: f"{name} ready:\n{controller.output()}")
        return controller

    def roots(self):
        """What agents mount: the published trust bundle."""
        bundle = wait_for(lambda: self.api.get("/api/v1/namespaces/mesh/configmaps/nodemesh-root-cert"), 20,
                          "the trust bundle")
        return bundle["data"]["root-cert.pem"]

    def close(self):
        for controller in self.controllers:
            controller.stop()
        self.api.close()


@pytest.fixture
def cluster():
    folder = tempfile.mkdtemp(prefix="nodemesh-controller-")
    made = Cluster(folder)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(folder)


def names_of(pem):
    leaf = x509.load_pem_x509_certificate(pem.encode())
    return certificates.uris(leaf.public_bytes(serialization.Encoding.DER))


def refusal(client, *arguments, **options):
    with pytest.raises(Refused) as caught:
        client.ask(*arguments, **options)
    return caught.value


def test_an_agent_gets_the_identities_of_its_node_over_tls_and_no_other(cluster):
    controller = cluster.start()
    with CaClient(controller.port, cluster.roots()) as client:
        assert client.sock.version() == "TLSv1.3"
        chain = client.ask(AGENT, WEB)
        assert names_of(chain[0]) == [WEB]  # whatever the CSR said
        assert chain[-1] == cluster.roots()
        refused = refusal(client, AGENT, DB)
        assert (refused.code, refused.message) == (UNAUTHENTICATED, "request authenticate failure")
        assert names_of(client.ask("web.token.one")[0]) == [WEB]
        # All refusals look alike from outside.
        for token, identity in (("web.token.one", DB), ("other.audience.one", WEB), ("un.known.token", WEB),
                                (None, WEB), (AGENT, "spiffe://elsewhere/ns/shop/sa/web"), (AGENT, "nonsense")):
            again = refusal(client, token, identity)
            assert (again.code, again.message) == (refused.code, refused.message), (token, identity)
    controller.wait_log("reason=no_pod_on_node why=.*shop/db is on node n1.*")
    controller.wait_log("peer=127.0.0.1 reason=not_an_agent")
    assert AGENT not in controller.output()
    assert controller.metric("nodemesh_ca_issued_total") == 2
    for reason, count in (("no_pod_on_node", 1), ("not_an_agent", 1), ("token_rejected", 2), ("no_token", 1),
                          ("foreign_trust_domain", 1), ("identity_invalid", 1)):
        assert controller.metric(f'nodemesh_ca_refused_total{{reason="{reason}"}}') == count, reason


def test_rights_follow_the_pods(cluster):
    controller = cluster.start()
    with CaClient(controller.port, cluster.roots()) as client:
        assert refusal(client, AGENT, DB).code == UNAUTHENTICATED
        cluster.api.pod("shop", "db-2", "db", "n1")
        assert client.ask(AGENT, DB)  # at once: the API server is asked where the watch lags
        cluster.api.pod("shop", "db-2", "db", "n1", phase="Failed")
        wait_for(lambda: _refused(client, DB), 20, "a finished pod's identity refused")
        cluster.api.delete("/api/v1/namespaces/mesh/pods/agent-1")
        wait_for(lambda: _refused(client, WEB), 20, "an agent refused that is gone")


def _refused(client, identity):
    try:
        client.ask(AGENT, identity)
    except Refused as error:
        return error.code == UNAUTHENTICATED
    return False


def test_strangers_meet_limits_while_others_are_served(cluster):
    controller = cluster.start()
    roots = cluster.roots()
    with pytest.raises(ssl.SSLError):
        CaClient(controller.port, roots, version=ssl.TLSVersion.TLSv1_2)
    with pytest.raises(ssl.SSLError):
        CaClient(controller.port, roots, alpn=("http/1.1",))
    with pytest.raises((ssl.SSLError, OSError, ConnectionError)):
        with CaClient(controller.port, roots, alpn=()) as client:
            client.ask(AGENT, WEB)
    with pytest.raises(ssl.SSLCertVerificationError):
        CaClient(controller.port, roots, name="other.mesh.svc")
    with contextlib.ExitStack() as stack, CaClient(controller.port, roots, source="127.0.0.2") as good:
        for _ in range(80):
            with contextlib.suppress(ConnectionResetError):  # above the limit, before connect() has returned
                stack.enter_context(socket.create_connection(("127.0.0.1", controller.port), 10))
        wait_for(lambda: controller.metric("nodemesh_ca_connections_refused_total") >= 16, 20, "connections refused")
        assert controller.metric("nodemesh_ca_connections_open") <= 65
        with CaClient(controller.port, roots, source="127.0.0.3") as hostile:
            assert refusal(hostile, AGENT, WEB, csr=b"x" * 100_000).code in (8, 13)
            assert refusal(hostile, "a." + "x" * 20_000 + ".b", WEB).code != 0
        assert names_of(good.ask(AGENT, WEB)[0]) == [WEB]


def test_an_api_server_that_is_away_is_no_refusal_and_takes_nothing_away(cluster):
    controller = cluster.start()
    with CaClient(controller.port, cluster.roots()) as client:
        cluster.api.down = True
        assert refusal(client, AGENT, WEB).code == UNAVAILABLE
        assert controller.ready()
        cluster.api.down = False
        assert client.ask(AGENT, WEB)


def test_two_replicas_have_one_root_and_one_leader_and_a_stop_hands_it_on(cluster):
    first, second = cluster.start("ctl-1"), cluster.start("ctl-2")
    wait_for(lambda: first.leads() or second.leads(), 20, "a leader")
    roots = cluster.roots()
    chains = []
    for controller in (first, second):
        with CaClient(controller.port, roots) as client:
            chains.append(client.ask(AGENT, WEB))
    assert chains[0][-1] == chains[1][-1] == roots
    assert not (first.leads() and second.leads())
    leader, other = (first, second) if first.leads() else (second, first)
    assert leader.stop() == 0
    wait_for(other.leads, 10, "the other replica leads, without waiting for the lease to run out")
    restarted = cluster.start("ctl-3")
    with CaClient(restarted.port, roots) as client:
        assert client.ask(AGENT, WEB)[-1] == roots


def test_a_plugged_in_authority_is_changed_under_way_and_nobody_is_cut_off(cluster):
    def plug(authority):
        with open(authority.root_file, encoding="utf-8") as root:
            pem = root.read()
        key = authority.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                          serialization.NoEncryption()).decode()
        cluster.api.secret("cacerts", {"ca-cert.pem": pem, "ca-key.pem": key, "root-cert.pem": pem, "cert-chain.pem": ""})
        return authority.certificate

    old = plug(certificates.Authority.stranger(cluster.folder, "old root"))
    controller = cluster.start("ctl-1", "--max-lifetime", "4s", "--rotation-overlap", "4s")
    at_first = cluster.roots()
    assert x509.load_pem_x509_certificate(at_first.encode()) == old
    with CaClient(controller.port, at_first) as client:
        assert client.ask(AGENT, WEB)
    cluster.api.secret("cacerts", {"ca-cert.pem": "broken"})
    controller.wait_log("cacerts is refused")
    new = plug(certificates.Authority.stranger(cluster.folder, "new root"))
    both = wait_for(lambda: cluster.roots().count("BEGIN") == 2 and cluster.roots(), 20, "both roots published")

    def issuer():
        with CaClient(controller.port, both) as client:  # at every moment
            leaf = x509.load_pem_x509_certificate(client.ask(AGENT, WEB)[0].encode())
        return leaf.issuer

    assert issuer() in (old.subject, new.subject)
    wait_for(lambda: issuer() == new.subject, 30, "leaves of the new root")
    with pytest.raises(ssl.SSLCertVerificationError):  # the server's own certificate has moved, too
        CaClient(controller.port, at_first)
    assert base64.b64decode(cluster.api.get("/api/v1/namespaces/mesh/secrets/nodemesh-ca")["data"]["ca-cert.pem"])


def test_without_an_authority_it_leads_and_marks_pods_and_has_no_key_no_bundle_and_no_port(cluster):
    controller = cluster.start("ctl-1", "--without-authority")
    assert controller.port == 0
    wait_for(controller.leads, 20, "it leads")
    with open(f"/proc/{controller.process.pid}/net/tcp", encoding="ascii") as table:
        own = {os.readlink(f"/proc/{controller.process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{controller.process.pid}/fd")}
        listening = [line.split() for line in table if line.split()[3] == "0A"]
    assert [int(line[1].split(":")[1], 16) for line in listening if f"socket:[{line[9]}]" in own] == [controller.admin]
    for path in ("secrets/nodemesh-ca", "configmaps/nodemesh-root-cert"):
        assert cluster.api.get(f"/api/v1/namespaces/mesh/{path}") is None
    page = controller.get("/metrics")
    assert "nodemesh_controller_pods_synced 1" in page and "nodemesh_ca_" not in page


def test_the_process_says_how_it_is(cluster):
    controller = cluster.start()
    assert controller.get("/healthz") == "ok\n"
    page = controller.get("/metrics")
    assert controller.metric("nodemesh_controller_pods") == 3
    assert controller.metric("nodemesh_ca_secrets_good") == 1
    assert controller.metric("nodemesh_ca_trust_bundle_good") == 1
    assert controller.metric("nodemesh_ca_signer_not_after_seconds") > 1_900_000_000
    assert "nodemesh_build_info" in page
    with pytest.raises(urllib.error.HTTPError):
        controller.get("/config_dump")


class Passage:
    """127.0.0.1:15012 of a node's namespace, which leads to the controller outside of it."""

    def __init__(self, node, port):
        self.port = port
        with netns.entered(node.netns):
            self.listener = socket.create_server(("127.0.0.1", 15012))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self.listener.accept()
                other = socket.create_connection(("127.0.0.1", self.port))
                for one, two in ((peer, other), (other, peer)):
                    threading.Thread(target=self._carry, args=(one, two), daemon=True).start()

    @staticmethod
    def _carry(source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


def test_agents_of_two_nodes_get_their_certificates_over_tls_and_carry_traffic(cluster):
    controller = cluster.start()
    os.chmod(cluster.folder, 0o755)
    with open(f"{cluster.folder}/roots.pem", "w", encoding="utf-8") as out:
        out.write(cluster.roots())
    with Lab() as lab, contextlib.ExitStack() as stack:
        client = lab.node("node1").pod("client", namespace="shop", service_account="client")
        server = lab.node("node2").pod("server", namespace="shop", service_account="server")
        programs.nginx(server, files={"page": b"hello"})
        lab.write_manifests()
        lab.start_controller()  # of the folder: nobody asks it
        for node, account in ((lab.node("node1"), "client"), (lab.node("node2"), "server")):
            cluster.api.pod("shop", account, account, node.name)
            cluster.api.pod("mesh", f"agent-{node.name}", "nodemesh-agent", node.name)
            token = f"agent.{node.name}.token"
            cluster.api.tokens[token] = ("system:serviceaccount:mesh:nodemesh-agent", f"agent-{node.name}",
                                         f"uid-agent-{node.name}", "istio-ca")
            with open(f"{cluster.folder}/{node.name}.token", "w", encoding="utf-8") as out:
                out.write(token + "\n")
            stack.callback(Passage(node, controller.port).close)
            node.start_agent(ready=False, extra=(
                "--", "--ca-address", "127.0.0.1:15012", "--ca-root", f"{cluster.folder}/roots.pem", "--ca-server-name",
                "nodemesh-controller.mesh.svc", "--ca-token-file", f"{cluster.folder}/{node.name}.token"))
        for node in lab.nodes:
            node.wait_ready()
        wait_for(lambda: controller.metric("nodemesh_ca_issued_total") >= 2, 20,
                 lambda: f"certificates issued:\n{controller.output()}\n{lab.logs()}")
        with lab.capture(lab.node("node1")) as capture:
            wait_for(lambda: "hello" in client.run(["curl", "-sm5", f"http://{server.ipv4}/page"], check=False).stdout, 20,
                     lambda: f"traffic:\n{lab.logs()}")
        capture.report().require_hbone_only()
        assert "certificate issued" not in lab.controller.output()
        assert "identity=spiffe://cluster.local/ns/shop/sa/server" in controller.output()
