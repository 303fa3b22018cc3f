"""scripts/bench scale: one real agent against a real API server that holds what a cluster of 1,000 nodes would.

The cluster has one node of its own; the other nodes, their WorkloadSlices, Services and EndpointSlices are objects made
here. The controllers of the cluster are off meanwhile, so that nobody asks what runs on nodes that do not exist. What
the agent asks is counted in the API server's audit log, by the agent's own service account. Nothing is simulated on the
agent's side: it is the chart's DaemonSet, pinned to one CPU, and everything else runs on the others.
"""

import collections
import concurrent.futures
import contextlib
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.append(f"{ROOT}/tests/cluster")

AGENT_CPU = 1
ACCOUNT = "system:serviceaccount:nodemesh-system:nodemesh-agent"
NAMESPACE = "scale"
TICK = os.sysconf("SC_CLK_TCK")
POLICY = {"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
          "metadata": {"name": "toggled", "namespace": "shop"},
          "spec": {"selector": {"matchLabels": {"app": "server"}}, "action": "DENY", "rules": [{}]}}
# In a pod: connects for ever and writes a line, with the clock, whenever the outcome changes.
PROBE = """
import socket, sys, time
last = None
while True:
    try:
        with socket.create_connection((sys.argv[1], 8080), timeout=2) as s:
            s.sendall(b"GET / HTTP/1.1\\r\\nhost: x\\r\\nconnection: close\\r\\n\\r\\n")
            now = b"200" in s.recv(64)
    except OSError:
        now = False
    if now != last:
        print(f"{time.time():.4f} {int(now)}", flush=True)
        last = now
    time.sleep(0.002)
"""


def say(text):
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


class Size:
    """How many objects, and what each says. Addresses are outside of the real node's ranges."""

    def __init__(self, nodes, pods_per_node, services):
        self.nodes, self.per_node, self.services = nodes, pods_per_node, services
        self.pods = nodes * pods_per_node
        self.per_service = max(1, self.pods // services)

    def node_name(self, number):
        return f"ip-172-16-{number // 256}-{number % 256}.compute.internal"

    def range(self, number):
        return f"10.{100 + number // 256}.{number % 256}"

    def address(self, pod, flip=0):
        return f"{self.range(pod // self.per_node)}.{2 + pod % self.per_node + flip * 100}"

    def pod_name(self, pod):
        return f"web-{pod % 500}-7d4b9c6f5d-{pod:05}"

    def node(self, number):
        name = self.node_name(number)
        return {"apiVersion": "v1", "kind": "Node",
                "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": f"zone-{number % 3}",
                                                      "topology.kubernetes.io/region": "here"}},
                "spec": {"podCIDR": f"{self.range(number)}.0/24", "podCIDRs": [f"{self.range(number)}.0/24"]}}

    def agent(self, number):
        """The Pod of a node's agent: without one the controller would speak for the node."""
        return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"agent-{number}", "namespace": "nodemesh-system"},
                "spec": {"nodeName": self.node_name(number), "serviceAccountName": "nodemesh-agent",
                         "containers": [{"name": "none", "image": "none"}]}}

    def slices(self, number):
        for part, first in enumerate(range(0, self.per_node, 16)):
            yield self.slice(number, part, range(first, min(first + 16, self.per_node)))

    def slice(self, number, part, places, flip=0):
        pods = [number * self.per_node + place for place in places]
        owners = sorted({pod % 500 for pod in pods})
        name = self.node_name(number)
        return {"apiVersion": "nodemesh.dev/v1alpha1", "kind": "WorkloadSlice", "metadata": {"name": f"{name}-{part}"},
                "spec": {"node": name, "complete": part == 0,
                         "templates": [{"namespace": NAMESPACE, "serviceAccount": f"web-{owner % 50}",
                                        "labels": {"app": f"web-{owner}", "version": "v1", "team": f"team-{owner % 20}"},
                                        "owner": {"type": "deployment", "name": f"web-{owner}"},
                                        "protocols": ["nm1", "h2"]} for owner in owners],
                         "pods": [{"uid": f"0a1b2c3d-4e5f-4000-8000-{flip:04}{pod:08}", "name": self.pod_name(pod),
                                   "ips": [self.address(pod, flip)], "template": owners.index(pod % 500),
                                   "state": "mesh"} for pod in pods]}}

    def service(self, number):
        return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": f"svc-{number}", "namespace": NAMESPACE},
                "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}]}}

    def endpoints(self, number, flips=()):
        pods = range(number * self.per_service, (number + 1) * self.per_service)
        return {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {"name": f"svc-{number}-abcde", "namespace": NAMESPACE,
                             "labels": {"kubernetes.io/service-name": f"svc-{number}"}},
                "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
                "endpoints": [{"addresses": [self.address(pod, int(pod in flips))], "conditions": {"ready": True},
                               "nodeName": self.node_name(pod // self.per_node),
                               "targetRef": {"kind": "Pod", "name": self.pod_name(pod), "namespace": NAMESPACE}}
                              for pod in pods]}


PLACES = {"Pod": "/api/v1/namespaces/nodemesh-system/pods", "Node": "/api/v1/nodes", "Service": f"/api/v1/namespaces/{NAMESPACE}/services",
          "EndpointSlice": f"/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices",
          "WorkloadSlice": "/apis/nodemesh.dev/v1alpha1/workloadslices"}


def send(cluster, calls, threads=6):
    """Makes (method, path, body) calls over as many connections as there are threads."""
    from minicluster.api import Api
    local = threading.local()

    def one(call):
        if not hasattr(local, "api"):
            local.api = Api(cluster.plan, cluster.netns)
        method, path, body = call
        return local.api.request(method, path, body, *(["application/merge-patch+json"] if method == "PATCH" else []))

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        return list(pool.map(one, calls))


class Agent:
    """The processes of the node's agent."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.pids = {name: self._find(name) for name in ("nodemesh-proxy", "nodemesh-warden")}
        for pids in self.pids.values():
            for pid in pids:
                with contextlib.suppress(OSError):  # it may end meanwhile
                    for thread in os.listdir(f"/proc/{pid}/task"):
                        os.sched_setaffinity(int(thread), {AGENT_CPU})

    def _find(self, name):
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as line:
                    words = line.read().split(b"\0")
                with open(f"/proc/{pid}/cgroup", encoding="ascii") as groups:
                    ours = f"/{self.cluster.plan.group}/" in groups.read()
                if ours and words[0].decode().endswith(name):
                    found.append(int(pid))
            except OSError:
                continue
        return found

    def cpu(self):
        """Seconds, of all its processes."""
        total = 0
        for pid in sum(self.pids.values(), []):
            with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as line:
                fields = line.read().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
        return total / TICK

    def memory(self):
        """MiB: proportional set size now, and the largest resident set so far, by program."""
        out = {}
        for name, pids in self.pids.items():
            pss = peak = 0
            for pid in pids:
                with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as lines:
                    pss += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
                with open(f"/proc/{pid}/status", encoding="ascii") as lines:
                    peak += sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
            out[name] = (pss / 1024, peak / 1024)
        return out


class Audit:
    """What the agent asked of the API server."""

    def __init__(self, cluster):
        self.path = f"{cluster.plan.state}/log/audit.log"

    def here(self):
        return os.path.getsize(self.path)

    def since(self, begin):
        """Requests as (verb, resource, URI), each once, whatever its stages."""
        seen = {}
        with open(self.path, "rb") as log:
            log.seek(begin)
            for line in log:
                try:
                    event = json.loads(line)
                except ValueError:
                    continue  # being written
                if event["user"]["username"] == ACCOUNT:
                    resource = event.get("objectRef", {}).get("resource", "-")
                    seen[event["auditID"]] = (event["verb"], resource, event["requestURI"])
        return list(seen.values())


def quantile(values, part):
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


class Scale:
    def __init__(self, size, rest_seconds, toggles):
        self.size, self.rest_seconds, self.toggles = size, rest_seconds, toggles
        self.rows = []

    def tell(self, what, value):
        self.rows.append((what, value))
        say(f"{what}: {value}")

    def run(self, cluster, mesh):
        self.cluster, self.mesh, self.audit = cluster, mesh, Audit(cluster)
        from minicluster import workloads
        cluster.apply([workloads.namespace("shop", {"istio.io/dataplane-mode": "ambient"}),
                       *workloads.echo("server", "shop", replicas=1), workloads.tools("client", "shop", labels={"app": "client"}),
                       workloads.namespace(NAMESPACE)])
        self.server, = cluster.ready_pods("app=server", "shop")
        self.client, = cluster.ready_pods("app=client", "shop")
        with cluster.without("kube-controller-manager"), cluster.without("kube-scheduler"):
            self.fill()
            self.converge()
            self.rest()
            self.change_pods()
            self.enforce("at rest")
            self.enforce("while pods change", churn=True)
        return self.rows

    def fill(self):
        cluster, size = self.cluster, self.size
        # Only a node's own agent may write its slices; here the script is all of them.
        cluster.kubectl("delete", "validatingadmissionpolicybinding", "--all")
        for kind, things in (("Pod", [size.agent(n) for n in range(size.nodes)]),
                             ("Node", [size.node(n) for n in range(size.nodes)]),
                             ("Service", [size.service(n) for n in range(size.services)]),
                             ("EndpointSlice", [size.endpoints(n) for n in range(size.services)]),
                             ("WorkloadSlice", [one for n in range(size.nodes) for one in size.slices(n)])):
            began = time.monotonic()
            send(cluster, [("POST", PLACES[kind], thing) for thing in things])
            say(f"{len(things)} objects of kind {kind} in {time.monotonic() - began:.0f} s")

    def known(self):
        """How many workloads the agent says it knows."""
        pids = Agent(self.cluster).pids["nodemesh-proxy"]
        if not pids:
            return 0
        done = subprocess.run(["nsenter", f"--net=/proc/{pids[-1]}/ns/net", "curl", "-s", "--max-time", "2",
                               "http://127.0.0.1:15000/status"], capture_output=True, text=True, check=False)
        return json.loads(done.stdout)["status"]["workloads"] if done.stdout.startswith("{") else 0

    def converge(self):
        """The agent's container starts anew with everything there."""
        old = Agent(self.cluster)
        begin = self.audit.here()
        began = time.monotonic()
        for pid in sum(old.pids.values(), []):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.cluster.wait(lambda: all(Agent(self.cluster).pids.values()), 60, "the agent's processes are back")
        Agent(self.cluster)  # on its CPU, and what it starts with it
        self.cluster.wait(lambda: self.known() >= self.size.pods, 120, "the agent knows all pods")
        agent = Agent(self.cluster)
        self.tell("start to all workloads known", f"{time.monotonic() - began:.1f} s, {agent.cpu():.1f} s of CPU")
        asked = self.audit.since(begin)
        lists = collections.Counter(f"{verb} {resource}" for verb, resource, _ in asked)
        pods = [uri for verb, resource, uri in asked if resource == "pods" and verb in ("list", "watch")]
        self.tell("requests of a start", f"{len(asked)} ({', '.join(f'{n} {what}' for what, n in lists.most_common(6))}, …)")
        self.tell("requests for Pods without spec.nodeName", sum("spec.nodeName" not in uri for uri in pods))
        time.sleep(5)
        self.memory("after the start")
        self.agent = agent

    def memory(self, when):
        agent = Agent(self.cluster)
        parts = agent.memory()
        self.tell(f"memory {when}", f"{sum(pss for pss, _ in parts.values()):.0f} MiB (" + ", ".join(
            f"{name} {pss:.0f}, at most {peak:.0f}" for name, (pss, peak) in parts.items()) + ")")

    def rest(self):
        begin, cpu, began = self.audit.here(), self.agent.cpu(), time.monotonic()
        time.sleep(self.rest_seconds)
        seconds = time.monotonic() - began
        rate = len(self.audit.since(begin)) / seconds
        self.tell("requests at rest", f"{rate:.3f} a second; 1,000 such agents: {rate * 1000:.0f} a second")
        self.tell("CPU at rest", f"{(self.agent.cpu() - cpu) / seconds:.2%} of a core")

    def churn_calls(self, pods, flip):
        """500 pods that get a new address: their slices and their EndpointSlices."""
        size = self.size
        for place in {pod // size.per_node * 1000 + pod % size.per_node // 16 for pod in pods}:
            number, part = divmod(place, 1000)
            places = range(part * 16, min(part * 16 + 16, size.per_node))
            thing = size.slice(number, part, places, flip)
            yield "PATCH", f"{PLACES['WorkloadSlice']}/{thing['metadata']['name']}", {"spec": thing["spec"]}
        for number in {pod // size.per_service for pod in pods}:
            flips = set(range(number * size.per_service, (number + 1) * size.per_service)) if flip else ()
            thing = size.endpoints(number, flips)
            yield "PATCH", f"{PLACES['EndpointSlice']}/{thing['metadata']['name']}", {"endpoints": thing["endpoints"]}

    def change_pods(self):
        step = max(1, self.size.pods // 500)
        pods = range(0, step * 500, step)
        begin, cpu, began = self.audit.here(), self.agent.cpu(), time.monotonic()
        calls = list(self.churn_calls(pods, 1))
        send(self.cluster, calls)
        written = time.monotonic() - began
        time.sleep(3)
        asked = self.audit.since(begin)
        self.tell("500 pods changed", f"{len(calls)} objects written in {written:.1f} s; the agent asked {len(asked)} times "
                  f"and took {self.agent.cpu() - cpu:.2f} s of CPU")

    def enforce(self, when, churn=False):
        """From the API server's answer to an edit of a policy to the first connection with the other outcome."""
        path = "/apis/security.istio.io/v1/namespaces/shop/authorizationpolicies"
        self.cluster.api.close()  # it was idle for longer than the server keeps connections
        log = f"{self.cluster.plan.state}/log/probe-{churn}.log"
        probe = self.cluster.spawn([f"{self.cluster.bin}/kubectl", "exec", "-n", "shop", self.client.name, "--",
                                    "python3", "-u", "-c", PROBE, self.server.ipv4], log)
        stop = threading.Event()

        def turn():
            flip = 0
            while not stop.is_set():
                flip = 1 - flip
                for call in self.churn_calls(range(0, self.size.pods, self.size.pods // 40), flip):
                    if stop.is_set():
                        return
                    send(self.cluster, [call], 1)

        turning = threading.Thread(target=turn)
        times = []
        try:
            self.cluster.wait(lambda: probe.output().strip().endswith(" 1"), 30, "the probe connects")
            if churn:
                turning.start()
            for number in range(self.toggles):
                deny = number % 2 == 0
                if deny:
                    self.cluster.api.request("POST", path, POLICY)
                else:
                    self.cluster.api.request("DELETE", f"{path}/toggled")
                changed = time.time()
                want = f" {int(not deny)}"
                self.cluster.wait(lambda want=want: probe.output().strip().splitlines()[-1].endswith(want), 20, "enforcement")
                times.append(float(probe.output().strip().splitlines()[-1].split()[0]) - changed)
        finally:
            stop.set()
            if churn:
                turning.join()
            probe.stop()
        self.tell(f"change to enforcement {when}", f"p50 {statistics.median(times) * 1000:.0f} ms, "
                  f"p99 {quantile(times, 0.99) * 1000:.0f} ms ({len(times)} edits)")
        self.memory(when)


def document(rows, facts):
    """docs/scale.md."""
    table = "\n".join(f"| {what} | {value} |" for what, value in rows)
    return f"""# Scale

One agent of the chart, on one core of its own, against a real API server that holds 1,000 Nodes, WorkloadSlices for
50,000 workloads, 5,000 Services and their EndpointSlices. Made by `scripts/bench scale` on {facts["machine"]}, {facts["date"]},
commit {facts["commit"]}.

| | |
|---|---|
{table}

- Requests are counted in the API server's audit log, by the agent's service account. What a thousand agents would ask is
  one agent's count times 1,000, not a measurement of a thousand agents.
- Enforcement is judged from outside: a pod connects for ever, an AuthorizationPolicy that denies it is made and removed,
  and the time is from the API server's answer to the first connection with the other outcome. Half of it is waiting: changes
  are read together, 100 ms after the last and at most 500 ms after the first.
- Memory is the proportional share of all processes of the agent (proxy, warden, their supervisors, the opener); "at most"
  is the sum of their largest resident sets.
- The objects are made by a script, which plays the other nodes; the control plane's own controllers are off meanwhile.

The aims are 150 MiB per agent and 1 s from change to enforcement (p99). What an agent holds of a pod elsewhere is its WorkloadSlice
as it was read and the workload made of it, some 1.5 KiB with its part of Services and indexes; labels, names and identity are
held once for all pods of an owner. A change costs 60 to 100 ms of the control thread at this size, however small it is.
"""


def main(small=False, build=None):
    """Returns the rows as (what, value)."""
    if build:
        os.environ["NODEMESH_BUILD_DIR"] = build
    from minicluster import mesh as meshes
    from minicluster.cluster import Cluster, default_cgroup
    from minicluster.plan import Plan
    size = Size(40, 50, 200) if small else Size(1000, 50, 5000)
    others = set(range(os.cpu_count())) - {AGENT_CPU}
    os.sched_setaffinity(0, others)  # and everything that is started from here
    with tempfile.TemporaryDirectory() as folder, Cluster.up(
            Plan(f"scale-{os.getpid()}", nodes=1, cgroup=default_cgroup(), audit=ACCOUNT), owned=True, say=say) as cluster:
        folder = pathlib.Path(folder)
        mesh = meshes.Mesh(cluster, meshes.write_chart(folder))
        cluster.load_image(meshes.write_image(folder))
        cluster.helm("install", "nodemesh", mesh.chart, "--namespace", meshes.NAMESPACE, "--create-namespace", *mesh.values)
        mesh.agents()
        return Scale(size, 10 if small else 60, 10 if small else 100).run(cluster, mesh)  # all of it goes with the cluster

