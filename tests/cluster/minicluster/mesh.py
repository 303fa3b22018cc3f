"""nodemesh on a cluster: installed by its Helm chart, what its agents count, what it left behind when it is gone.

    with Mesh.installed(cluster, chart, image) as mesh:
        mesh.agents()
        mesh.count("istio_tcp_connections_opened_total", reporter="source")  # {node: number}

What is judged here is judged from outside: captures, applications' answers, bpftool, ip.
"""

import contextlib
import json
import os
import subprocess

import prometheus
import yaml
from minicluster import binaries
from minicluster.api import condition
from minicluster.plan import bracketed

NAMESPACE = "nodemesh-system"
LABEL = "istio.io/dataplane-mode"
AGENT = f"system:serviceaccount:{NAMESPACE}:nodemesh-agent"
PROFILES = f"{binaries.ROOT}/charts/nodemesh/profiles"
BUILD = os.environ.get("NODEMESH_BUILD_DIR") or f"{binaries.ROOT}/build/release"

# Prints what the mesh puts into a pod's network namespace, and nothing where it is not there.
TRACES = """
ip -4 rule | grep -E '0x539|lookup 100'
ip -6 rule | grep -E '0x539|lookup 100'
ip -4 route show table 100 2> /dev/null
ip -6 route show table 100 2> /dev/null
ss -Htln | grep ':15008 '
for name in net.ipv4.tcp_fwmark_accept net.ipv4.fwmark_reflect net.ipv6.fwmark_reflect net.ipv4.ip_local_reserved_ports; do
  sysctl $name | grep -Ev '= (0)?$'
done
"""


def write_chart(folder):
    path = folder / "nodemesh.tgz"
    subprocess.run([f"{binaries.ROOT}/scripts/chart", "--output", path], check=True, stdout=subprocess.DEVNULL)
    return path


def write_image(folder):
    path = folder / "nodemesh.tar"
    subprocess.run([f"{binaries.ROOT}/scripts/image", "--build-dir", BUILD, "--output", path], check=True,
                   stdout=subprocess.DEVNULL)
    return path


FOREIGN = "peerauthentications.security.istio.io"


def crd(cluster, name=FOREIGN):
    """All that the API server says of a CRD once it serves it; else None."""
    thing = cluster.api.get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}")
    return thing if condition(thing, "Established") else None


def foreign_crd(cluster, text):
    """Makes one of the CRDs of a YAML text somebody else's, with a label and a description of their own; returns it."""
    thing, = (one for one in yaml.safe_load_all(text) if one and one["metadata"]["name"] == FOREIGN)
    thing["metadata"]["labels"] = {"owner": "somebody-else"}
    thing["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["description"] = "theirs"
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", input=yaml.safe_dump(thing))
    return cluster.wait(lambda: crd(cluster), 30, f"{FOREIGN} is served")


def ask(pod, url, *words, **options):
    """The answer that an echo pod gets, or None where it gets none. words are flags of echo, before `get`."""
    done = pod.exec(["/echo", *words, "get", url], check=False, **options)
    return json.loads(done) if done.startswith("{") else None


def wire(cluster, pods, node=None):
    """A recording of what some pods send between nodes, at a node: that of the first of them, if none is given."""
    node = node or next(node for node in cluster.nodes if node.name == pods[0].node_name)
    addresses = [address for pod in pods for address in pod.addresses]
    words = " or ".join(f"host {address}" for address in addresses).split()
    return cluster.capture(node, filter=["tcp", "and", "(", *words, ")"])


class Wires:
    """Recordings at every node of what some pods send between nodes, from entering the block to leaving it."""

    def __init__(self, cluster, pods):
        self._captures = [wire(cluster, pods, node) for node in cluster.nodes]
        self._stack = contextlib.ExitStack()

    def __enter__(self):
        for one in self._captures:
            self._stack.enter_context(one)
        return self

    def __exit__(self, *_):
        self._stack.close()

    def require_hbone_only(self):
        """AssertionError unless HBONE was seen and nothing else on any node."""
        reports = [one.report() for one in self._captures]
        violations = [line for report in reports for line in report.violations]
        assert not violations, "\n".join(violations[:10])
        assert any(report.application_records for report in reports), "no HBONE was seen between the nodes"
        return reports

    def contains(self, needle):
        return any(one.report().contains(needle) for one in self._captures)


class Mesh:
    """The installed mesh. `values` are Helm's words for what the chart must be told of these nodes."""

    def __init__(self, cluster, chart):
        self.cluster, self.chart, self.gone = cluster, chart, False
        # where the nodes have cgroup2, and that images are loaded by hand
        self.values = ["-f", f"{PROFILES}/test.yaml"] if cluster.plan.cgroup == 1 else ["--set", "image.pullPolicy=Never"]

    @classmethod
    @contextlib.contextmanager
    def installed(cls, cluster, chart, image, *values):
        made = cls(cluster, chart)
        cluster.load_image(image)
        cluster.wait(lambda: "Terminating" not in cluster.kubectl("get", "namespace", NAMESPACE, "--ignore-not-found"), 60,
                     f"an earlier namespace {NAMESPACE} is gone")
        cluster.helm("install", "nodemesh", chart, "--namespace", NAMESPACE, "--create-namespace", *made.values, *values)
        try:
            yield made
        finally:
            if not made.gone:
                made.uninstall()
            cluster.delete("namespace", NAMESPACE)
            cluster.wait(lambda: NAMESPACE not in cluster.kubectl("get", "namespaces", "-o", "name"), 60,
                         f"namespace {NAMESPACE} is gone")

    def upgrade(self, *values):
        self.cluster.helm("upgrade", "nodemesh", self.chart, "--namespace", NAMESPACE, *self.values, *values)

    def uninstall(self):
        self.cluster.helm("uninstall", "nodemesh", "--namespace", NAMESPACE)
        self.cluster.wait(lambda: not self.cluster.pods(namespace=NAMESPACE), 120, lambda: "the mesh's pods have ended:\n" +
                          self.cluster.kubectl("get", "pods", "-n", NAMESPACE, "-o", "wide", check=False))
        self.gone = True

    def agents(self, seconds=90):
        return self.cluster.ready_pods("app.kubernetes.io/component=agent", NAMESPACE, count=len(self.cluster.nodes),
                                       seconds=seconds)

    def metrics(self, agent):
        done = self.cluster.reach(f"http://{bracketed(agent.addresses[0])}:15020/metrics")
        return prometheus.Page(done.stdout)

    def count(self, metric, **labels):
        """{node: sum} over the agents."""
        return {agent.node_name: self.metrics(agent).sum(metric, **labels) for agent in self.agents()}

    def log(self, node, container="proxy"):
        """What the agent of a node has written, ready or not."""
        agents = self.cluster.pods("app.kubernetes.io/component=agent", NAMESPACE)
        return next(agent for agent in agents if agent.node_name == node).logs(container)

    def left_behind(self):
        """Sentences about everything of the mesh that is still in a node or in the API; empty where nothing is."""
        found = []
        for node in self.cluster.nodes:
            found += [f"{node.name}: {line}" for line in _left_on(node)]
        kinds = self.cluster.kubectl("api-resources", "--verbs=list", "-o", "name").split()
        found += [f"the kind {kind}" for kind in kinds if kind.endswith("nodemesh.dev")]
        left = self.cluster.kubectl("get", ",".join(kinds), "-A", "-l", "app.kubernetes.io/name=nodemesh", "-o", "name",
                                    "--ignore-not-found", check=False)
        return found + left.split()


def _left_on(node):
    """Pins, programs and processes of the node, folders; then what is in every pod's network namespace and its own."""
    if "nodemesh" in node.run(["ls", "/sys/fs/bpf"]).stdout:
        yield "a pin in /sys/fs/bpf"
    for line in node.run(["bpftool", "cgroup", "tree", node.cgroup2]).stdout.splitlines():
        if any(name in line for name in ("nm_", "connect4", "connect6", "sock_ops", "getsockname", "getpeername")):
            yield f"a program on a cgroup: {line.strip()}"
    for name in node.run(["ps", "-e", "-o", "comm="]).stdout.split():
        if name.startswith(("nodemesh-", "nm-")):
            yield f"the process {name}"
    for folder in ("/run", "/var/lib", "/var/log", "/etc", "/opt"):
        if "nodemesh" in node.run(["ls", folder]).stdout:
            yield f"something in {folder}"
    links = json.loads(node.run(["bpftool", "-j", "link", "list"]).stdout)
    attached = {link["netns_ino"] for link in links if link.get("type") == "netns"}
    spaces = node.run(["ls", "/run/netns"], check=False).stdout.split()
    for path in ["/proc/1/ns/net", *(f"/run/netns/{space}" for space in spaces)]:
        for line in node.run(["nsenter", f"--net={path}", "sh", "-c", TRACES], check=False).stdout.splitlines():
            yield f"{path}: {line}"
        inode = node.run(["stat", "-L", "-c", "%i", path], check=False).stdout.strip()
        if inode and int(inode) in attached:
            yield f"{path}: a program is attached"
