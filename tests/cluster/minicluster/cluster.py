"""A cluster as its users see it: the tests, and scripts/cluster.

    with Cluster.up(Plan("mine"), owned=True) as cluster:
        cluster.apply(manifests)                           # dicts or YAML text
        cluster.rollout("deployment/echo")
        web, = cluster.pods("app=echo", namespace="shop")
        web.exec(["/echo", "get", "http://other"])
        with cluster.capture(cluster.node(1)) as capture:  # what is on the wire of node 1
            ...
        cluster.node(2).restart()                          # a power failure

One thread uses a Cluster; several Clusters, also of other processes, may stand for the same cluster.
"""

import contextlib
import dataclasses
import datetime
import json
import os
import shutil
import signal
import subprocess
import time

import capture as capturing
import cgroups
import processes
import yaml
from minicluster import binaries, images, keeper
from minicluster.api import Api, ApiError, condition
from minicluster.hierarchies import hierarchies
from minicluster.plan import CACHE, MAX_NODES, PREFIX, STATES, Plan, load
from waiting import FACTOR, wait_for

HERE = os.path.dirname(os.path.abspath(__file__))
PROGRAMS = ("containerd", "ctr", "runc", "nft", "ip", "unshare", "nsenter", "jq", "sysctl")
NET_PLUGIN = "/usr/lib/cni/ptp"


def obstacles(plan):
    """Why a cluster cannot be made on this machine, a list of sentences; empty where it can."""
    if os.geteuid() != 0:
        return ["a cluster makes namespaces, cgroups and mounts: run as root"]
    found = [f"there is no {name}: run scripts/install-packages cluster" for name in (*PROGRAMS, NET_PLUGIN)
             if not shutil.which(name)]
    kinds = [is_cgroup2 for _, is_cgroup2 in hierarchies()]
    if True not in kinds:
        found.append("no cgroup2 file system is mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")
    if plan.cgroup == 1 and False not in kinds:
        found.append("this machine has no cgroup v1 hierarchies: use --cgroup 2")
    if not 1 <= plan.nodes <= MAX_NODES:
        found.append(f"--nodes {plan.nodes} is not between 1 and {MAX_NODES}")
    if CACHE.startswith(("/var/lib/", "/var/log/", "/opt/", "/run/")):
        found.append(f"{CACHE} is hidden in the nodes: set NODEMESH_CLUSTER_CACHE to a folder outside of /var, /opt, /run")
    return found


def default_cgroup():
    """1 where the machine has v1 hierarchies, since only those can limit containers then; else 2."""
    return 1 if False in [is_cgroup2 for _, is_cgroup2 in hierarchies()] else 2


def names():
    """The clusters that exist, or whose keeper left something behind."""
    return sorted(name.removeprefix(PREFIX) for name in os.listdir(STATES) if name.startswith(PREFIX))


def _time(text):
    """A time of the API as a datetime."""
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))


class Pod:
    """A pod as it was when it was asked for."""

    def __init__(self, cluster, thing):
        self.cluster, self.object = cluster, thing
        self.name, self.namespace = thing["metadata"]["name"], thing["metadata"]["namespace"]
        self.uid = thing["metadata"]["uid"]
        self.node_name = thing["spec"].get("nodeName")
        self.addresses = [entry["ip"] for entry in thing.get("status", {}).get("podIPs", [])]
        self.ipv4 = next((address for address in self.addresses if ":" not in address), None)
        self.ipv6 = next((address for address in self.addresses if ":" in address), None)

    @property
    def ready(self):
        return condition(self.object, "Ready")

    @property
    def restarts(self):
        return sum(status["restartCount"] for status in self.object["status"].get("containerStatuses", []))

    def exec(self, command, container=None, **options):
        """Runs a command in a container by way of the API server and returns its standard output."""
        chosen = ["-c", container] if container else []
        return self.cluster.kubectl("exec", "-n", self.namespace, self.name, *chosen, "--", *command, **options)

    def logs(self, container=None, previous=False):
        words = (["-c", container] if container else []) + (["--previous"] if previous else [])
        return self.cluster.kubectl("logs", "-n", self.namespace, self.name, *words)

    def delete(self):
        self.cluster.kubectl("delete", "pod", "-n", self.namespace, self.name, "--grace-period=1")


class Node:
    """A node: its processes, its place on the wire, and its power switch. It fits tests/support/capture.py."""

    def __init__(self, cluster, number):
        self.cluster, self.number, self.name = cluster, number, f"node{number}"
        self.dir = cluster.plan.node_dir(number)
        self.cgroup2 = "/sys/fs/cgroup" if cluster.plan.cgroup == 2 else "/sys/fs/cgroup/unified"  # on the node
        self.ipv4 = cluster.plan.node(number, 4) if 4 in cluster.plan.families else None
        self.ipv6 = cluster.plan.node(number, 6) if 6 in cluster.plan.families else None

    @property
    def pid(self):
        """Process 1 of the node, seen from outside; RuntimeError while the power is off."""
        try:
            with open(f"{self.dir}/pid", encoding="ascii") as source:
                pid = int(source.read())
            os.stat(f"/proc/{pid}/ns/net")
            return pid
        except (OSError, ValueError):
            raise RuntimeError(f"{self.name} is off") from None

    @property
    def netns(self):
        """The path of its network namespace."""
        return f"/proc/{self.pid}/ns/net"

    @property
    def cgroup(self):
        """The node's cgroup2 root, seen from outside."""
        return f"{cgroups.mount_point()}/{self.cluster.plan.group}/{self.name}"

    def inside(self, command):
        """The command line that runs a command on the node, in all its namespaces."""
        return ["nsenter", "--all", "--target", str(self.pid), "--", *command]

    def run(self, command, **options):
        """Runs a command on the node to its end; see processes.run."""
        return processes.run(processes.Place(None, f"{self.cgroup}/system"), self.inside(command), **options)

    def spawn(self, command, log, **options):
        """Starts a program of the machine (its files, its processes) in the node's network; see processes.spawn."""
        return processes.spawn(processes.Place(self.netns, f"{self.cgroup}/system"), command, log, **options)

    def pods(self, namespace=None):
        found = self.cluster.pods(namespace=namespace)
        return [pod for pod in found if pod.node_name == self.name]

    def object(self):
        return self.cluster.api.get(f"/api/v1/nodes/{self.name}")

    def load_image(self, path):
        """Imports the images of an OCI or Docker tar file into the node's containerd; a tag that exists moves."""
        with open(path, "rb") as source:
            done = subprocess.run(self.inside(["ctr", "-n", "k8s.io", "images", "import", "-"]), stdin=source,
                                  capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{path} on {self.name}: {done.stderr.strip()}")

    def power_off(self):
        """Everything of the node ends at once, as when its power fails. Its disk stays."""
        with contextlib.suppress(RuntimeError):
            self.cluster.switch_off(self.name, self.pid)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.dir}/up")

    def power_on(self):
        """The node boots from its disk; returns when kubelet runs."""

        def booted():  # asked again, since the keeper may not have heard yet that it is off
            self.cluster.switch_on(self.name)
            return os.path.exists(f"{self.dir}/up")

        wait_for(booted, 60, f"{self.name} has booted", every=0.2)

    def restart(self, seconds_off=0):
        """A power failure; returns when the API server has heard of the node again and calls it Ready."""
        self.power_off()
        time.sleep(seconds_off)
        self.power_on()
        self.wait_ready()

    def wait_ready(self, seconds=60):
        """Until the node is Ready by what its kubelet has said since it booted: until the API server has missed it for 20 s,
        a node without power is called Ready too."""
        with open(f"{self.dir}/up", encoding="ascii") as source:
            booted = datetime.datetime.fromtimestamp(float(source.read()), datetime.timezone.utc)

        def heard():
            lease = self.cluster.api.get(f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{self.name}")
            thing = self.object()
            said, = (one["lastHeartbeatTime"] for one in thing["status"]["conditions"] if one["type"] == "Ready")
            return (_time(lease["spec"]["renewTime"]) > booted and condition(thing, "Ready")
                    and _time(said) >= booted.replace(microsecond=0))

        self.cluster.wait(heard, seconds, f"{self.name} is Ready")


class Cluster:
    """A cluster that is up; Cluster(name) finds it, Cluster.up(plan) makes it."""

    def __init__(self, name="default"):
        try:
            self.plan = load(name)
            with open(f"{self.plan.state}/keeper", encoding="ascii") as source:
                self.keeper = int(source.read())
            self.netns = f"/proc/{self.keeper}/ns/net"
            self.api = Api(self.plan, self.netns)
        except FileNotFoundError:
            raise RuntimeError(f"no cluster named {name} is up: scripts/cluster up") from None
        self.nodes = [Node(self, number) for number in self.plan.numbers]
        self.bin = binaries.BIN
        self._keeper_process = None

    # --- life

    @classmethod
    def up(cls, plan, owned=False, say=print):
        """Makes the cluster and returns when nodes and DNS are ready. An owned one ends with this process, whatever ends
        it; another one stays until `down`."""
        if reasons := obstacles(plan):
            raise RuntimeError("; ".join(reasons))
        binaries.build(say)
        images.build(say)
        if os.path.exists(plan.state):
            cls.sweep(plan.name)
        os.makedirs(f"{plan.state}/log", mode=0o755)
        process = subprocess.Popen(
            ["/usr/bin/python3", "-B", "-m", "minicluster.keeper", json.dumps(dataclasses.asdict(plan)),
             *(["owned"] if owned else [])], stdin=subprocess.PIPE if owned else subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, cwd="/",
            env={**os.environ, "PYTHONPATH": f"{os.path.dirname(HERE)}:{binaries.ROOT}/tests/support"})
        with open(f"{plan.state}/keeper", "w", encoding="ascii") as out:
            out.write(str(process.pid))
        try:
            cls._follow(process, say)
        except BaseException:
            process.terminate()
            process.wait(2 * keeper.ENDING)
            raise
        made = cls(plan.name)
        made._keeper_process = process
        return made

    @staticmethod
    def _follow(process, say):
        """Passes on what the keeper says until the cluster is ready."""
        for line in process.stdout:
            say(line.rstrip())
            if line.endswith("  ready\n"):
                process.stdout.close()
                return
        raise RuntimeError("the cluster did not come up; why stands above")

    @staticmethod
    def sweep(name):
        """Removes what a cluster without a keeper left behind; RuntimeError where it has one."""
        plan = Plan(name)
        try:
            descriptor = keeper.lock(plan)
        except BlockingIOError:
            raise RuntimeError(f"the cluster {name} is up already: scripts/cluster down --name {name}") from None
        try:
            keeper.remove(plan)
        finally:
            os.close(descriptor)

    def down(self):
        """Ends the cluster; nothing of it stays."""
        self.api.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.keeper, signal.SIGTERM)
        if self._keeper_process:
            if self._keeper_process.stdin:
                self._keeper_process.stdin.close()
            code = self._keeper_process.wait(2 * keeper.ENDING)
            if os.path.exists(self.plan.state):  # it failed to remove it, or was killed
                self.sweep(self.plan.name)
            if code != 0:
                raise RuntimeError(f"the keeper of {self.plan.name} ended with {code}")
        wait_for(lambda: not os.path.exists(self.plan.state), 2 * keeper.ENDING, f"{self.plan.state} is gone", every=0.1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.down()

    def switch_off(self, name, pid):
        """Kills a part and keeps it off until switch_on()."""
        with open(f"{self.plan.state}/off/{name}", "w", encoding="ascii"):
            pass
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not os.path.exists(f"/proc/{pid}"), 30, f"{name} is off")

    def switch_on(self, name):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.plan.state}/off/{name}")
        os.kill(self.keeper, signal.SIGUSR1)

    @contextlib.contextmanager
    def without(self, name):
        """For the duration of the block a part of the control plane is killed: kube-apiserver, etcd, kube-scheduler,
        kube-controller-manager. Returns when the API server answers again."""
        with open(f"{self.plan.state}/pids/{name}", encoding="ascii") as source:
            self.switch_off(name, int(source.read()))
        try:
            yield
        finally:
            self.switch_on(name)
            self.wait(lambda: self.api.raw("GET", "/readyz") == "ok", 60, "the API server is ready")

    # --- what runs on the machine beside the nodes

    def _place(self):
        return processes.Place(self.netns, f"{cgroups.mount_point()}/{self.plan.group}/machine")

    def environment(self):
        """What kubectl and helm need to know."""
        state = self.plan.state
        return {"KUBECONFIG": self.plan.kubeconfig(), "KUBECACHEDIR": f"{state}/kubectl",
                "HELM_CACHE_HOME": f"{state}/helm/cache", "HELM_CONFIG_HOME": f"{state}/helm/config",
                "HELM_DATA_HOME": f"{state}/helm/data", "PATH": f"{self.bin}:{os.environ['PATH']}"}

    def run(self, command, **options):
        """Runs a program beside the nodes, on their wire; see processes.run."""
        return processes.run(self._place(), command, env={**self.environment(), **options.pop("env", {})}, **options)

    def spawn(self, command, log, **options):
        return processes.spawn(self._place(), command, log, env={**self.environment(), **options.pop("env", {})}, **options)

    def kubectl(self, *words, check=True, **options):
        """kubectl's standard output; RuntimeError with its error output where it fails and check is set."""
        return self.run([f"{self.bin}/kubectl", *words], check=check, **options).stdout

    def helm(self, *words, **options):
        """Helm's standard output; see kubectl."""
        return self.run([f"{self.bin}/helm", *words], **{"timeout": 180, **options}).stdout

    def reach(self, url, *words):
        """curl from beside the nodes; CompletedProcess."""
        return self.run(["curl", "-sS", "--max-time", "5", *words, url], check=False)

    @contextlib.contextmanager
    def port_forward(self, target, port, namespace="default"):
        """Yields a local port, in the cluster's network, that leads to port of target (pod/NAME, svc/NAME)."""
        log = f"{self.plan.state}/log/port-forward-{os.urandom(3).hex()}.log"
        process = self.spawn([f"{self.bin}/kubectl", "port-forward", "-n", namespace, target, f":{port}"], log)
        try:
            process.wait_output("Forwarding from 127.0.0.1:" if 4 in self.plan.families else "Forwarding from [::1]:")
            yield int(process.output().split("Forwarding from ")[1].split(" ->")[0].rsplit(":", 1)[1])
        finally:
            process.stop()

    # --- objects

    def apply(self, things, namespace=None):
        """Applies objects: YAML text, a dict, or a list of dicts."""
        if not isinstance(things, str):
            things = yaml.safe_dump_all([things] if isinstance(things, dict) else things)
        self.kubectl("apply", "--server-side", "-f", "-", *(["-n", namespace] if namespace else []), input=things)

    def delete(self, *words, namespace="default"):
        self.kubectl("delete", "-n", namespace, "--ignore-not-found", "--wait=false", *words)

    def pods(self, selector=None, namespace=None):
        """The pods of a namespace, or of all, that a label selector names."""
        folder = f"/api/v1/namespaces/{namespace}/pods" if namespace else "/api/v1/pods"
        found = self.api.get(folder + (f"?labelSelector={selector.replace('=', '%3D')}" if selector else ""))
        return [Pod(self, thing) for thing in found["items"]]

    def ready_pods(self, selector, namespace="default", count=1, seconds=60):
        """Waits until count pods are Ready, and no pod is on its way out; returns them by node and name."""

        def found():
            pods = self.pods(selector, namespace)
            good = [pod for pod in pods if pod.ready and not pod.object["metadata"].get("deletionTimestamp")]
            return good if len(good) == len(pods) == count else None

        pods = self.wait(found, seconds, lambda: f"{count} ready pods {selector}:\n" + self.kubectl(
            "describe", "pods", "-n", namespace, "-l", selector, check=False)[-3000:])
        return sorted(pods, key=lambda pod: (pod.node_name, pod.name))

    def rollout(self, what, namespace="default", seconds=60):
        """Waits until a Deployment, DaemonSet or StatefulSet has what it was told to have."""
        self.kubectl("rollout", "status", "-n", namespace, what, f"--timeout={int(seconds * FACTOR)}s",
                     timeout=seconds + 10)

    def wait(self, condition, seconds=30, what=None):
        """waiting.wait_for, where refusals of the API server and lost connections mean "not yet"."""
        return wait_for(condition, seconds, what, every=0.1, ignore=(ApiError, OSError))

    def node(self, number):
        return self.nodes[number - 1]

    def load_image(self, *paths):
        """Imports image tar files on every node."""
        for path in paths:
            for node in self.nodes:
                node.load_image(path)

    def capture(self, node, interface="eth0", **options):
        """A recording of what a node sends and receives on the wire; see tests/support/capture.py."""
        return capturing.Capture(node, interface, **options)

    def logs(self, size=2000):
        """The ends of all logs, for a failed test's report."""
        parts = []
        for name in sorted(os.listdir(f"{self.plan.state}/log")):
            with open(f"{self.plan.state}/log/{name}", encoding="utf-8", errors="replace") as log:
                parts.append(f"--- {name}\n{log.read()[-size:]}")
        return "\n".join(parts)
