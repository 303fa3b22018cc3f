"""How agents follow each other: a node's first one and one that comes back, while the API server that tells of pods is
away; and one that takes over from another that is still there."""

import contextlib
import os
import signal
import threading

import pytest

import cgroups
import manifests
import processes
import programs
from certificates import Authority
from kube_api import KubeApi
from lab import Lab
from mesh import ECHO, Mesh
from waiting import wait_for

attempt = Mesh.attempt
PROXY_USER = 65532


class Agent:
    """Warden and proxy of a node whose warden reads an API server; the proxy reads the lab's folder. The second of a node
    is a successor of the first, with places and ports of its own."""

    def __init__(self, lab, node, *options, before=None):
        self.node, self.number = node, before.number + 1 if before else 1
        self.api = before.api if before else self.make_api(lab, node)
        self.run_dir = f"{node.run_dir}/{self.number}"
        os.mkdir(self.run_dir)
        os.chown(self.run_dir, -1, PROXY_USER)
        os.chmod(self.run_dir, 0o3775)
        place = f"{node.kubepods}/pod6e6d6167-656e-4000-8000-00000000000{self.number}"
        self.cgroups = {name: cgroups.create(f"{place}/{name}") for name in ("warden", "proxy")}
        common = ["--node", node.name, "--run-dir", self.run_dir]
        hybrid = ["--allow-hybrid"] if cgroups.is_hybrid() else []
        self.warden = self.spawn("warden", *common, "--kubeconfig", self.api.kubeconfig(f"{node.dir}/kubeconfig"),
                                 "--bpf-dir", f"{node.bpf_dir}/agent", "--kubepods", node.kubepods, "--proxy-cgroup",
                                 self.cgroups["proxy"], "--kubelet-cgroup", node.kubelet_cgroup, *hybrid, *options)
        ports = [word for name, port in (("metrics", 15020), ("ready", 15021), ("admin", 15000))
                 for word in (f"--{name}-port", port + 100 * (self.number - 1))]
        node.agent = self.proxy = self.spawn("proxy", *common, "--config", lab.config_dir, "--ca",
                                             f"unix:{lab.ca_socket}", *ports)

    def make_api(self, lab, node):
        self.api = KubeApi(lab.authority.issue(dns=["kubernetes.default"]), lab.authority.root_file, node.netns)
        self.api.down = True
        for name in ("shop", "legacy"):
            labels = {"istio.io/dataplane-mode": "ambient"} if name == "shop" else {}
            self.api.put(f"/api/v1/namespaces/{name}", {"apiVersion": "v1", "kind": "Namespace",
                                                        "metadata": {"name": name, "uid": name, "labels": labels}})
        for pod in node.pods:
            self.api.put(f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}", pod.object)
        return self.api

    def ready(self):
        with contextlib.suppress(OSError):
            return self.node.http_get(15021 + 100 * (self.number - 1), "/healthz/ready")[0] == 200
        return False

    def spawn(self, name, *options):
        place = self.node.place()
        place.cgroup = self.cgroups[name]
        return processes.spawn(place, [self.node.lab.binary(f"nodemesh-{name}"), *options],
                               f"{self.node.dir}/{name}-{self.number}.log")

    def asked(self):
        return self.api.count("GET", "/api/v1/pods")

    def close(self):
        for process in (self.proxy, self.warden):
            process.kill()
        self.api.close()


@pytest.fixture
def lab(tmp_path):
    with Lab() as lab:
        lab.authority = Authority.stranger(str(tmp_path))
        node = lab.node("node1")
        node.pod("client", "shop", "curl")
        node.pod("outsider", "legacy", "old")
        programs.podtool(node.pod("plain", "legacy", "old"), ECHO, "echo")
        lab.apply(manifests.namespace("legacy"))
        lab.write_manifests()
        lab.start_controller()
        yield lab


@contextlib.contextmanager
def agent_of(lab, *options, before=None):
    agent = Agent(lab, lab.node("node1"), *options, before=before)
    try:
        yield agent
    finally:
        agent.close()


@contextlib.contextmanager
def never_refused(*pods, server):
    """Within the block the pods connect again and again; not one attempt may fail."""
    over, counts, failures = threading.Event(), dict.fromkeys((pod.name for pod in pods), 0), []

    def go_on(pod):
        while not over.is_set() and not failures:
            result = attempt(pod, server)
            counts[pod.name] += 1
            if result["how"] != "complete":
                failures.append((pod.name, result))

    threads = [threading.Thread(target=go_on, args=(pod,)) for pod in pods]
    for thread in threads:
        thread.start()
    try:
        yield lambda: min(counts.values())
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not failures, failures


def captured(node):
    return node.metrics().sum("istio_tcp_connections_opened_total", reporter="source", source_workload="client")


def test_no_connection_of_a_running_pod_fails_when_a_node_gets_its_first_agent(lab):
    client, outsider, plain = (lab.pod(name) for name in ("client", "outsider", "plain"))
    with agent_of(lab) as agent:
        with never_refused(client, outsider, server=plain) as attempts:
            wait_for(lambda: agent.asked() > 1, 20, "the warden asks for its pods in vain")
            before = attempts()
            wait_for(lambda: attempts() > before + 5, 20, "connections while nobody knows the pods")
            agent.api.down = False
            client.node.wait_ready()
            before = captured(client.node)
            wait_for(lambda: captured(client.node) > before + 2, 20, "connections of the client through the mesh")
        stranger = client.node.pod("stranger", "shop", "curl", apply=False)
        assert attempt(stranger, plain)["how"] == "EPERM", "a pod that nobody named"


def test_a_strict_agent_refuses_running_pods_until_it_knows_them(lab):
    client, plain = lab.pod("client"), lab.pod("plain")
    with agent_of(lab, "--strict") as agent:
        wait_for(lambda: agent.asked() > 1, 20, "the warden asks for its pods in vain")
        assert attempt(client, plain)["how"] == "EPERM"
        agent.api.down = False
        client.node.wait_ready()
        assert attempt(client, plain)["how"] == "complete"


def test_a_warden_that_comes_back_while_the_api_server_is_away_drops_no_pod(lab):
    client, plain = lab.pod("client"), lab.pod("plain")
    with agent_of(lab) as agent:
        agent.api.down = False
        client.node.wait_ready()
        session = client.spawn_tool("session", plain.ipv4, ECHO)
        session.wait_output('"open"')
        agent.api.down = True
        asked = agent.asked()
        for pid in client.node.agent_pids("nodemesh-warden", workers=True):
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: agent.proxy.output().count("connected to the warden") == 2, 20, "the proxy is back with it")
        wait_for(lambda: agent.asked() > asked, 20, "the new warden asks for its pods in vain")
        # The proxy accepts; whether it has a socket in stock is another matter: this warden cannot make any yet.
        assert attempt(client, plain)["how"] in ("complete", "ECONNRESET")
        agent.api.down = False
        wait_for(lambda: "pod enrolled" in agent.warden.output().split("warden is back")[1], 20,
                 "the new warden has its pods")
        wait_for(lambda: attempt(client, plain)["how"] == "complete", 10, "the client reaches the server")
        assert "pod gone" not in agent.proxy.output()
        assert not programs.events(session, "session"), session.output()
        session.stop()


def test_a_second_agent_waits_takes_over_without_a_failure_and_the_first_keeps_what_it_has(lab):
    client, plain = lab.pod("client"), lab.pod("plain")
    with agent_of(lab, "--standby") as first:
        first.api.down = False
        wait_for(first.ready, 20, "the first agent is ready")
        session = client.spawn_tool("session", plain.ipv4, ECHO)
        session.wait_output('"open"')
        with agent_of(lab, "--standby", before=first) as second, never_refused(client, server=plain) as attempts:
            wait_for(second.ready, 20, "the second agent is ready while the first serves")
            assert "standing by" in second.warden.output() and "pod in the mesh" not in second.proxy.output()
            for process in (first.warden, first.proxy):
                process.send(signal.SIGTERM)
            wait_for(lambda: "pod in the mesh" in second.proxy.output(), 20, "the second agent has the pod")
            wait_for(lambda: "the next agent has the pods" in first.proxy.output(), 20, "the first one knows")
            before = attempts()
            wait_for(lambda: attempts() > before + 50, 60, "connections until long after")
            assert first.warden.running and first.proxy.running
            assert not programs.events(session, "session"), session.output()
            session.stop()
            assert first.proxy.wait() == 0 and first.warden.wait() == 0
            before = attempts()
            wait_for(lambda: attempts() > before + 5, 20, "connections by the second agent alone")
            gone = client.node.pod("gone", "shop", "curl", apply=False)
            assert attempt(gone, plain)["how"] == "EPERM", "a pod that nobody named"


def test_a_first_agent_without_a_successor_ends_and_its_pods_stay_closed(lab):
    client, plain = lab.pod("client"), lab.pod("plain")
    with agent_of(lab, "--standby") as agent:
        agent.api.down = False
        wait_for(agent.ready, 20, "the agent is ready")
        for process in (agent.warden, agent.proxy):
            process.send(signal.SIGTERM)
        assert agent.proxy.wait(60) == 0 and agent.warden.wait(60) == 0
        assert attempt(client, plain)["how"] == "EPERM"
