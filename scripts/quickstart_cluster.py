"""scripts/quickstart --cluster: a Kubernetes cluster of three nodes on this machine, nodemesh by Helm, one label.

Each claim is judged from outside of the mesh: by a recording of the wire, by what the servers say of their clients, by
what is left in the nodes. With --once it ends after the last claim, else it stays until Ctrl-C; both remove everything.
"""

import argparse
import os
import pathlib
import signal
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [f"{ROOT}/tests/support", f"{ROOT}/tests/cluster"]

from minicluster import workloads  # noqa: E402
from minicluster.cluster import Cluster, default_cgroup  # noqa: E402
from minicluster.mesh import LABEL, NAMESPACE, Mesh, Wires, ask, write_chart, write_image  # noqa: E402
from minicluster.plan import Plan  # noqa: E402
from quickstart_judge import say  # noqa: E402

SHOP = "shop"
STRICT = {"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
          "metadata": {"name": "default", "namespace": SHOP}, "spec": {"mtls": {"mode": "STRICT"}}}


class Story:
    def __init__(self, cluster, mesh):
        self.cluster, self.mesh, self.failed = cluster, mesh, []

    def claim(self, text, judge):
        """Says whether it holds; the others are judged in any case."""
        try:
            judge()
            say(f"    holds: {text}")
        except (AssertionError, RuntimeError) as error:
            self.failed.append(text)
            say(f"    FAILED: {text}: {error}")

    def everybody_asks_everybody(self, path):
        for client in self.pods:
            for server in self.pods:
                for host in server.addresses:
                    url = f"http://[{host}]:8080{path}" if ":" in host else f"http://{host}:8080{path}"
                    answer = self.cluster.wait(lambda client=client, url=url: ask(client, url), 30, f"an answer of {url}")
                    seen = answer["client"].rsplit(":", 1)[0].strip("[]")
                    assert seen in client.addresses, f"{server.name} saw {seen} instead of {client.name}"

    def plain(self):
        with Wires(self.cluster, self.pods) as wires:
            self.everybody_asks_everybody("/before-the-label")
        assert wires.contains(b"/before-the-label"), "nothing of it was seen on the wire"

    def join(self):
        self.cluster.kubectl("label", "namespace", SHOP, f"{LABEL}=ambient")

        def tunnelled():
            opened = self.mesh.count("istio_tcp_connections_opened_total", connection_security_policy="mutual_tls")
            self.everybody_asks_everybody("/joining")
            after = self.mesh.count("istio_tcp_connections_opened_total", connection_security_policy="mutual_tls")
            return all(after[node] >= opened[node] + 4 for node in after)

        self.cluster.wait(tunnelled, 60, "all pairs of nodes talk by mutual TLS")

    def mutual_tls(self):
        with Wires(self.cluster, self.pods) as wires:
            self.everybody_asks_everybody("/after-the-label")
        reports = wires.require_hbone_only()
        versions = set().union(*(report.versions for report in reports))
        assert versions <= {"TLSv1.3"}, f"seen on the wire: {versions}"
        assert not wires.contains(b"/after-the-label"), "it was seen in plain text"

    def strict(self):
        stranger, = self.cluster.ready_pods("app=stranger", "street")
        url = f"http://{self.pods[0].addresses[0]}:8080/"
        assert ask(stranger, url), "a stranger is not served even before STRICT"
        self.cluster.apply(STRICT)
        self.cluster.wait(lambda: ask(stranger, url) is None, 30, "the stranger is refused")
        self.everybody_asks_everybody("/strict")

    def meshctl(self):
        done = self.cluster.run([f"{os.environ['NODEMESH_BUILD_DIR']}/ctl/meshctl", "status"], check=False)
        print(done.stdout + done.stderr, flush=True)
        assert done.returncode == 0, f"meshctl status ended with {done.returncode}"

    def tell(self):
        say(f"[5/6] two namespaces of echo servers: waiting until their pods are ready; {SHOP} is labelled afterwards")
        self.cluster.apply([workloads.namespace(SHOP), *workloads.echo("echo", SHOP), workloads.namespace("street"),
                            *workloads.echo("stranger", "street", replicas=1)])
        self.pods = self.cluster.ready_pods("app=echo", SHOP, count=3, seconds=90)
        self.cluster.ready_pods("app=stranger", "street")
        self.claim("before the label pods talk plainly, and the recordings show it", self.plain)
        self.claim(f"kubectl label namespace {SHOP} {LABEL}=ambient takes running pods into the mesh", self.join)
        self.claim("between nodes there is nothing but mutual TLS 1.3, and servers see their clients' addresses", self.mutual_tls)
        self.claim("STRICT refuses a pod outside of the mesh, and nobody in it", self.strict)
        self.claim("meshctl reaches every node's agent through the API server", self.meshctl)

    def uninstall(self):
        self.mesh.uninstall()
        left = self.mesh.left_behind()
        assert not left, "; ".join(left[:5])
        with Wires(self.cluster, self.pods) as wires:
            self.everybody_asks_everybody("/after-the-mesh")
        assert wires.contains(b"/after-the-mesh"), "nothing of it was seen on the wire"


def stay(cluster):
    print(f"""
To try, in another terminal:
    scripts/cluster --name {cluster.plan.name} kubectl get pods -A -o wide
    scripts/cluster --name {cluster.plan.name} exec {ROOT}/build/release/ctl/meshctl get connections
    scripts/cluster --name {cluster.plan.name} exec {ROOT}/build/release/ctl/meshctl check
Ctrl-C removes the cluster.""", flush=True)
    signal.pause()


def main():
    options = argparse.ArgumentParser(prog="scripts/quickstart --cluster", description=__doc__.split("\n", maxsplit=1)[0])
    options.add_argument("--once", action="store_true", help="end after the last claim")
    once = options.parse_args().once
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    plan = Plan("quickstart", cgroup=default_cgroup())
    say("[3/6] Kubernetes: waiting for its programs (the first time minutes), then for three nodes and DNS")
    with tempfile.TemporaryDirectory() as folder, Cluster.up(plan, owned=True, say=lambda line: print(f"    {line}")) as cluster:
        folder = pathlib.Path(folder)
        say("[4/6] helm install nodemesh: waiting for an agent on each node")
        with Mesh.installed(cluster, write_chart(folder), write_image(folder)) as mesh:
            mesh.agents(180)
            story = Story(cluster, mesh)
            story.tell()
            if not once:
                try:
                    stay(cluster)
                except KeyboardInterrupt:
                    print()
            say("[6/6] helm uninstall: waiting until the agents have let their pods go")
            story.claim("helm uninstall leaves nothing in the nodes, and pods talk plainly", story.uninstall)
    if story.failed:
        sys.exit("did not hold: " + "; ".join(story.failed))
    say("every claim holds; nothing is left")


if __name__ == "__main__":
    main()
