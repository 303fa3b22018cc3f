#!/usr/bin/python3
"""A lab: Kubernetes nodes and pods as network namespaces on one machine, with a real agent on each node.

    with Lab() as lab:
        node1, node2 = lab.node("node1"), lab.node("node2")
        client = node1.pod("curl", namespace="shop", service_account="curl")
        server = node2.pod("web", namespace="shop", service_account="web", labels={"app": "web"})
        lab.apply(manifests.namespace("shop", manifests.AMBIENT))
        lab.start()                                   # controller, and warden and proxy on every node
        programs.nginx(server)
        client.run(["curl", f"http://{server.ipv4}/"])

A node is a network namespace with its own cgroup2 subtree, BPF file system and run directory; a pod is a network
namespace with a kubelet-shaped cgroup and one pause process. Everything carries the lab's run id and is gone after
close(), which also runs at exit; what a killed owner left behind is removed by the next lab, or by `lab.py sweep`.
One thread uses a lab; it needs root.
"""

import atexit
import contextlib
import glob
import itertools
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import uuid

import yaml

import capture
import cgroups
import manifests
import netns
import processes
import prometheus
from waiting import wait_for

OPEN = []  # the labs of this process that are open, for a failed test's report
RUNS = "/run/nodemesh-lab"
PREFIX = "nmlab"
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
NODE_SYSCTLS = {
    "net.ipv4.ip_forward": 1, "net.ipv6.conf.all.forwarding": 1, "net.ipv4.conf.all.rp_filter": 0,
    "net.ipv4.conf.default.rp_filter": 0, "net.ipv6.conf.all.accept_dad": 0, "net.ipv6.conf.default.accept_dad": 0,
    "net.ipv4.tcp_congestion_control": "reno", "net.ipv4.ip_local_port_range": "32768 60999",
}
POD_SYSCTLS = {
    "net.ipv4.conf.all.rp_filter": 1, "net.ipv4.conf.default.rp_filter": 1, "net.ipv6.conf.all.accept_dad": 0,
    "net.ipv6.conf.default.accept_dad": 0, "net.ipv4.tcp_congestion_control": "reno",
    "net.ipv4.ip_local_port_range": "32768 60999", "net.ipv4.ip_unprivileged_port_start": 0,
    "net.core.somaxconn": 4096,
}


class Pod:
    """One pod: where its programs run, and its API object. Made by Node.pod()."""

    def __init__(self, node, thing, netns_name):
        self.node = node
        self.object = thing
        self.netns = netns_name
        self.name = thing["metadata"]["name"]
        self.namespace = thing["metadata"]["namespace"]
        self.uid = thing["metadata"]["uid"]
        self.service_account = thing["spec"].get("serviceAccountName", "default")
        self.addresses = [entry["ip"] for entry in thing["status"]["podIPs"]]
        self.ipv4 = next((a for a in self.addresses if ":" not in a), None)
        self.ipv6 = next((a for a in self.addresses if ":" in a), None)
        self.cgroup = f"{node.kubepods}/besteffort/pod{self.uid}"
        self.dir = f"{node.dir}/pods/{self.namespace}.{self.name}"
        self._count = itertools.count(1)

    @property
    def principal(self):
        return f"{self.node.lab.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"

    @property
    def identity(self):
        return f"spiffe://{self.principal}"

    def place(self, user=None, container="app"):
        return processes.Place(self.netns, cgroups.create(f"{self.cgroup}/{container}"), user)

    def spawn(self, command, user=None, log=None, **options):
        """Starts a program in the pod; it runs until stopped or until the lab closes."""
        log = log or f"{self.dir}/{next(self._count)}-{os.path.basename(str(command[0]))}.log"
        return processes.spawn(self.place(user), command, log, **options)

    def run(self, command, user=None, **options):
        """Runs a program in the pod to its end; see processes.run."""
        return processes.run(self.place(user), command, **options)

    def tool(self, *words, **options):
        """Runs tests/support/podtool.py in the pod and returns its last line of output as JSON."""
        done = self.run(["/usr/bin/python3", "-S", f"{os.path.dirname(__file__)}/podtool.py", *words], **options)
        return json.loads(done.stdout.strip().splitlines()[-1])

    def spawn_tool(self, *words, **options):
        return self.spawn(["/usr/bin/python3", "-S", "-u", f"{os.path.dirname(__file__)}/podtool.py", *words],
                          **options)

    def sockets(self, state="0A"):
        """(address, port) of this pod's TCP sockets in a state of /proc/net/tcp; 0A is LISTEN, 01 established."""
        found = []
        for table in ("tcp", "tcp6"):
            with open(f"/proc/{self.pause.pid}/net/{table}", encoding="ascii") as lines:
                next(lines)
                for line in lines:
                    words = line.split()
                    if words[3] == state:
                        host, port = words[1].split(":")
                        found.append((host, int(port, 16)))
        return found

    def wait_listening(self, *ports, process=None, seconds=20):
        """Waits until something in the pod listens on all the ports; gives up at once when the process ends."""

        def listening():
            if process and not process.running:
                raise RuntimeError(f"{process.popen.args} ended with {process.popen.returncode}:\n{process.output()}")
            return set(ports) <= {port for _, port in self.sockets()}

        wait_for(listening, seconds, f"{self.name} listens on {ports}")

    def create(self):
        """Makes the namespace, link, addresses, cgroup and pause process."""
        node = self.node
        link = self.link = f"v{next(node._links)}"
        os.makedirs(self.dir, exist_ok=True)
        os.chmod(self.dir, 0o777)
        cgroups.create(f"{self.cgroup}/app")
        netns.create(self.netns)
        netns.sysctl(self.netns, POD_SYSCTLS)
        netns.ip(node.netns, f"link add {link} type veth peer name eth0 netns {self.netns}\n"
                             f"link set {link} up\naddr add fe80::1/64 dev {link} nodad\n")
        lines = ["link set lo up", "link set eth0 up"]
        if self.ipv4:
            lines += [f"addr add {self.ipv4}/32 dev eth0", f"route add {node.gateway} dev eth0 scope link",
                      f"route add default via {node.gateway} src {self.ipv4}"]
        if self.ipv6:
            lines += [f"addr add {self.ipv6}/128 dev eth0 nodad", "route add default via fe80::1 dev eth0"]
        netns.ip(self.netns, "\n".join(lines) + "\n")
        netns.ip(node.netns, "".join(f"route add {address} dev {link}\n" for address in self.addresses))
        self.pause = self.spawn(["sleep", "infinity"], log=f"{self.dir}/pause.log")
        with open(f"{self.dir}/place.json", "w", encoding="utf-8") as out:
            json.dump({"netns": self.netns, "cgroup": f"{self.cgroup}/app"}, out)

    def remove(self):
        """Ends the pod as a kubelet would: processes, namespace, cgroup; then its object."""
        cgroups.kill(self.cgroup)
        netns.ip(self.node.netns, f"link del {self.link}\n", check=False)  # a namespace's end takes its time
        netns.delete(self.netns)
        cgroups.remove(self.cgroup)
        shutil.rmtree(self.dir)
        self.node.pods.remove(self)
        self.node.lab.delete(self.object)


class Node:
    """One node: namespace, cgroup subtree, BPF file system, pods and (once started) an agent."""

    def __init__(self, lab, name, index):
        self.lab = lab
        self.name = name
        self.index = index
        self.netns = f"{PREFIX}-{lab.run_id}-{name}"
        self.ipv4, self.ipv6 = f"10.0.0.{index}", f"fd00:10::{index}"
        self.gateway = f"10.244.{index}.254"
        self.cgroup = f"{lab.cgroup}/{name}"
        self.cgroup_flag = self.cgroup  # what the agent is told
        self.kubepods = f"{self.cgroup}/kubepods"
        self.kubelet_cgroup = f"{self.cgroup}/kubelet"
        self.dir = f"{lab.dir}/{name}"
        self.run_dir = f"{lab.dir}/run/{name}"
        self.bpf_dir = f"{self.dir}/bpf"
        self.pods = []
        self.agent = None
        self._links = itertools.count(1)
        self._addresses = itertools.count(1)
        self._count = itertools.count(1)

    def create(self):
        for folder in (self.run_dir, self.bpf_dir, f"{self.dir}/pods"):
            os.makedirs(folder)
        for group in (f"{self.kubepods}/besteffort", f"{self.kubepods}/burstable", self.kubelet_cgroup,
                      f"{self.cgroup}/system"):
            cgroups.create(group)
        subprocess.run(["mount", "-t", "bpf", "bpf", self.bpf_dir], check=True)
        netns.create(self.netns)
        netns.sysctl(self.netns, NODE_SYSCTLS)
        netns.ip(self.netns, f"link set lo up\naddr add {self.gateway}/32 dev lo\n"
                             f"route add unreachable 10.244.{self.index}.0/24\n"
                             f"route add unreachable fd00:244:{self.index}::/64\n")

    def pod(self, name, namespace="default", service_account="default", labels=None, ports=(), probes=(),
            annotations=None, ipv4=True, ipv6=True, apply=True, container="app"):
        """Makes a pod on this node and its API object. ipv4 and ipv6: an address, True for the next free, or False."""
        number = next(self._addresses)
        chosen = [f"10.244.{self.index}.{number}" if ipv4 is True else ipv4,
                  f"fd00:244:{self.index}::{number:x}" if ipv6 is True else ipv6]
        netns_name = self.lab.netns_name(namespace, name)
        thing = manifests.pod(name, namespace, self.name, str(uuid.uuid5(uuid.NAMESPACE_OID, netns_name)),
                              [address for address in chosen if address], netns.path_of(netns_name), labels,
                              service_account, ports, probes, annotations, self.ipv4, container)
        made = self.adopt(thing, netns_name)
        if apply:
            self.lab.apply(thing)
        return made

    def adopt(self, thing, netns_name):
        """Makes the pod that an API object describes, without writing the object."""
        made = Pod(self, thing, netns_name)
        made.create()
        self.pods.append(made)
        return made

    def place(self, group="system"):
        return processes.Place(self.netns, f"{self.cgroup}/{group}")

    def spawn(self, command, group="system", log=None, **options):
        """Starts a program on the node itself, outside of every pod; group "kubelet" is the kubelet's cgroup."""
        log = log or f"{self.dir}/{next(self._count)}-{os.path.basename(str(command[0]))}.log"
        return processes.spawn(self.place(group), command, log, **options)

    def run(self, command, group="system", **options):
        return processes.run(self.place(group), command, **options)

    # The agent ------------------------------------------------------------------------------------------------

    def start_agent(self, workers=2, ready=True, extra=(), wrap=()):
        """Starts warden and proxy of this node and waits for readiness unless told not to.

        extra: more options of `meshctl node run`; wrap: words in front of the command, for example prlimit's.
        """
        lab = self.lab
        if lab.controller is None:
            lab.start_controller()
        command = [*wrap, lab.binary("meshctl"), "node", "run", "--config", lab.config_dir, "--node", self.name,
                   "--run-dir", self.run_dir, "--cgroup", self.cgroup_flag, "--bpf-dir", self.bpf_dir,
                   "--kubelet-cgroup", self.kubelet_cgroup, "--ca", f"unix:{lab.ca_socket}",
                   "--workers", workers, *(["--allow-hybrid"] if cgroups.is_hybrid() else []), *extra]
        self.agent = self.spawn(command, log=f"{self.dir}/agent.log", env=lab.agent_env)
        if ready:
            self.wait_ready()
        return self.agent

    def stop_agent(self, number=signal.SIGTERM, seconds=40):
        """Stops the agent and all it started; returns the exit code of `meshctl node run`."""
        return self.agent.stop(number, seconds)

    def is_ready(self):
        with contextlib.suppress(OSError):
            return self.http_get(15021, "/healthz/ready")[0] == 200
        return False

    def wait_ready(self, seconds=20):
        def ready():
            if not self.agent.running:
                raise RuntimeError(f"agent of {self.name} ended with {self.agent.popen.returncode}:\n"
                                   + self.agent.output()[-4000:])
            return self.is_ready()

        wait_for(ready, seconds, lambda: f"{self.name} is ready:\n{self.agent.output()[-4000:]}")

    def http_get(self, port, path, host="127.0.0.1"):
        """GET from within the node's namespace: (status, body as text)."""
        with netns.connect(self.netns, (host, port)) as sock:
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
            answer = b"".join(iter(lambda: sock.recv(65536), b""))
        head, _, body = answer.partition(b"\r\n\r\n")
        if b"transfer-encoding: chunked" in head.lower():
            parts = []
            while body:
                size, _, body = body.partition(b"\r\n")
                parts.append(body[:int(size, 16)])
                body = body[int(size, 16) + 2:]
            body = b"".join(parts)
        return int(head.split(None, 2)[1]), body.decode()

    def metrics(self):
        """One scrape of this node's 15020, parsed."""
        status, body = self.http_get(15020, "/metrics")
        if status != 200:
            raise RuntimeError(f"GET /metrics on {self.name}: {status} {body[:200]}")
        return prometheus.Page(body)

    def access_log(self):
        """The JSON access log lines that this node's agent has written to its standard output so far."""
        found = []
        for line in self.agent.output().splitlines():
            if line.startswith('{"start_time"') and line.endswith("}"):
                found.append(json.loads(line))
        return found

    def ctl(self, *words, **options):
        """Runs meshctl against this node's admin socket; returns its output, parsed where it is JSON."""
        done = self.run([self.lab.binary("meshctl"), *words, "--admin", f"unix:{self.run_dir}/admin.sock"], **options)
        return json.loads(done.stdout) if "json" in words else done.stdout

    def agent_pids(self, program, workers=False):
        """Processes of this node's agent that run the program; workers leaves out the supervisor above them."""
        found = []
        for pid in cgroups.members(self.cgroup):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as line:
                words = line.read().split(b"\0")
                if os.path.basename(words[0]) == program.encode():
                    found.append((pid, b"--no-supervisor" in words))
        only = workers and any(worker for _, worker in found)
        return [pid for pid, worker in found if worker or not only]


class Lab:
    """The whole set-up; see the head of this file."""

    def __init__(self, build=None, trust_domain="cluster.local", agent_env=None):
        if os.geteuid() != 0:
            raise RuntimeError("a lab makes network namespaces and cgroups: run as root")
        sweep()
        self.run_id = secrets.token_hex(3)
        self.build = build or os.environ.get("NODEMESH_BUILD_DIR") or f"{ROOT}/build/release"
        self.trust_domain = trust_domain
        self.agent_env = dict(agent_env or {})
        self.dir = f"{RUNS}/{self.run_id}"
        self.config_dir = f"{self.dir}/config"
        self.ca_socket = f"{self.dir}/ca/ca.sock"
        self.ca_state = f"{self.dir}/ca/state"
        self.cgroup = _cgroup_of(self.run_id)
        self.nodes = []
        self.controller = None
        self._files = {}
        self._captures = []
        self._open = True
        os.makedirs(RUNS, exist_ok=True)
        os.makedirs(self.config_dir)
        os.makedirs(self.ca_state, mode=0o700)
        with open(f"{self.dir}/owner", "w", encoding="ascii") as owner:
            owner.write(f"{os.getpid()} {_start_time(os.getpid())}")
        cgroups.create(f"{self.cgroup}/tools")
        OPEN.append(self)
        atexit.register(self.close)
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, lambda got, _: sys.exit(128 + got))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Ends every process and removes every namespace, mount, cgroup and file of this lab. Safe to call twice."""
        if self._open:
            self._open = False
            OPEN.remove(self)
            atexit.unregister(self.close)
            remove(self.run_id)

    # Nodes and pods -------------------------------------------------------------------------------------------

    def node(self, name):
        """The node of that name, made at first use. Two nodes are joined by a veth pair, more by a bridge."""
        for one in self.nodes:
            if one.name == name:
                return one
        made = Node(self, name, len(self.nodes) + 1)
        made.create()
        self.nodes.append(made)
        self._wire()
        return made

    def pod(self, name, namespace=None):
        """The pod of that name; raises KeyError where there is none."""
        for node in self.nodes:
            for one in node.pods:
                if one.name == name and namespace in (None, one.namespace):
                    return one
        raise KeyError(f"no pod {namespace or '*'}/{name}")

    def netns_name(self, namespace, name):
        return f"{PREFIX}-{self.run_id}-{namespace}.{name}"

    def binary(self, name):
        """Path of a built program, wherever below the build folder it lies."""
        for folder in ("", "agent/app/", "ctl/", "controller/", "bin/", "agent/"):
            path = f"{self.build}/{folder}{name}"
            if os.access(path, os.X_OK) and os.path.isfile(path):
                return path
        raise FileNotFoundError(f"{name} is not built in {self.build}")

    def _wire(self):
        if len(self.nodes) < 2:
            return
        bridge = f"{PREFIX}-{self.run_id}-wire"
        for node in self.nodes:
            netns.ip(node.netns, "link del eth0\n", check=False)
        if len(self.nodes) == 2:
            one, two = self.nodes
            netns.ip(one.netns, f"link add eth0 type veth peer name eth0 netns {two.netns}\n")
        else:
            if not netns.names(bridge):
                netns.create(bridge)
                netns.ip(bridge, "link set lo up\nlink add br0 type bridge\nlink set br0 up\n")
            for node in self.nodes:
                netns.ip(bridge, f"link add n{node.index} type veth peer name eth0 netns {node.netns}\n"
                                 f"link set n{node.index} master br0 up\n")
        for node in self.nodes:
            netns.ip(node.netns, f"link set eth0 up\naddr add {node.ipv4}/24 dev eth0\n"
                                 f"addr add {node.ipv6}/64 dev eth0 nodad\n")
        for node in self.nodes:
            netns.ip(node.netns, "".join(f"route add 10.244.{other.index}.0/24 via {other.ipv4}\n"
                                         f"route add fd00:244:{other.index}::/64 via {other.ipv6}\n"
                                         for other in self.nodes if other is not node))

    # Objects --------------------------------------------------------------------------------------------------

    def apply(self, *things, file=None):
        """Writes objects (dicts) to the configuration folder: each to its own file, or all to the named one."""
        if file:
            self.write(file, yaml.safe_dump_all(things, sort_keys=False))
            return
        for thing in things:
            self.write(self.file_of(thing), yaml.safe_dump(thing, sort_keys=False))

    def file_of(self, thing):
        kind, namespace, name = manifests.key(thing)
        return f"{kind.lower()}-{namespace + '.' if namespace else ''}{name}.yaml"

    def write(self, file, text):
        """Writes one file of the configuration folder by an atomic rename."""
        hidden = f"{self.config_dir}/.{file}.new"
        with open(hidden, "w", encoding="utf-8") as out:
            out.write(text)
        os.rename(hidden, f"{self.config_dir}/{file}")

    def delete(self, thing):
        """Removes an object (a dict that apply() wrote to its own file), or a file by its name."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.config_dir}/{thing if isinstance(thing, str) else self.file_of(thing)}")

    def write_manifests(self):
        """Writes the Namespaces and ServiceAccounts that the pods need and that nobody has applied yet."""
        for pod in [pod for node in self.nodes for pod in node.pods]:
            for thing in (manifests.namespace(pod.namespace, manifests.AMBIENT),
                          manifests.service_account(pod.service_account, pod.namespace)):
                if not os.path.exists(f"{self.config_dir}/{self.file_of(thing)}"):
                    self.apply(thing)

    def load(self, folder):
        """Makes the nodes and pods that a folder of manifests describes and copies the folder as configuration.

        Comments and order stay. Each Pod gets this lab's network namespace and, where it has none, a uid, as a kubelet
        would name its cgroup by.
        """
        for file in sorted(os.listdir(folder)):
            if file.endswith((".yaml", ".yml")):
                with open(f"{folder}/{file}", encoding="utf-8") as source:
                    parts = re.split(r"(^---.*\n)", source.read(), flags=re.MULTILINE)
                self.write(file, "".join(self._localise(part) for part in parts))

    def _localise(self, text):
        thing = yaml.safe_load(text) if not text.startswith("---") else None
        if not thing or thing["kind"] != "Pod":
            return text
        metadata = thing["metadata"]
        netns_name = self.netns_name(metadata["namespace"], metadata["name"])
        text = re.sub(rf"({re.escape(manifests.NETNS_ANNOTATION)}:[ \t]*)\S+", rf"\g<1>{netns.path_of(netns_name)}", text)
        if "uid" not in metadata:
            metadata["uid"] = str(uuid.uuid5(uuid.NAMESPACE_OID, netns_name))
            text = re.sub(r"^metadata:\n", f"metadata:\n  uid: {metadata['uid']}\n", text, count=1, flags=re.MULTILINE)
        self.node(thing["spec"]["nodeName"]).adopt(thing, netns_name)
        return text

    # Agents and captures --------------------------------------------------------------------------------------

    def start_controller(self, extra=()):
        """Starts the certificate authority that serves all nodes, once."""
        if self.controller and self.controller.running:
            return self.controller
        place = processes.Place(None, cgroups.create(f"{self.cgroup}/controller"))
        command = [self.binary("nodemesh-controller"), "--config", self.config_dir, "--listen",
                   f"unix:{self.ca_socket}", "--state-dir", self.ca_state, "--trust-domain", self.trust_domain,
                   "--allow-uid", "65532", "--socket-gid", "65532", *extra]
        self.controller = processes.spawn(place, command, f"{self.dir}/controller.log", env=self.agent_env)

        def listening():
            if not self.controller.running:
                raise RuntimeError(f"the controller ended:\n{self.controller.output()}")
            return os.path.exists(self.ca_socket)

        wait_for(listening, 10, lambda: f"the controller listens:\n{self.controller.output()}")
        return self.controller

    def start(self, **options):
        """Writes what is missing, then starts the controller and all agents, and waits until they are ready."""
        self.write_manifests()
        self.start_controller()
        for node in self.nodes:
            node.start_agent(ready=False, **options)
        for node in self.nodes:
            node.wait_ready()

    def capture(self, node, interface="eth0", filter=("tcp",)):
        """Starts recording a node's link; use as a context manager, then ask the Capture."""
        return capture.Capture(node, interface, filter)

    def logs(self, limit=6000):
        """The tails of all agents' and the controller's logs, for a failed test's report."""
        parts = []
        for process in [self.controller, *(node.agent for node in self.nodes)]:
            if process:
                parts.append(f"---- {process.log}\n{process.output()[-limit:]}")
        return "\n".join(parts)


def _cgroup_of(run_id):
    return f"{cgroups.mount_point()}/nodemesh-{run_id}"


def _start_time(pid):
    """Start time of a process in clock ticks since boot; with the id it names a process for ever. None: not alive."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
            return int(stat.read().rpartition(")")[2].split()[19])
    except OSError:
        return None


def remove(run_id):
    """Removes everything that carries the run id, in an order in which each step can succeed."""
    cgroup, folder = _cgroup_of(run_id), f"{RUNS}/{run_id}"
    cgroups.kill(cgroup)
    processes.reap()
    for name in netns.names(f"{PREFIX}-{run_id}-"):
        netns.delete(name)
    with open("/proc/mounts", encoding="utf-8") as mounts:
        mounted = [line.split()[1] for line in mounts]
    for path in reversed([path for path in mounted if path.startswith(folder + "/")]):
        subprocess.run(["umount", "-l", path], check=False)
    cgroups.remove(cgroup)
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.rmdir(RUNS)  # fails while another lab is there


def sweep():
    """Removes the remains of labs whose owner is dead; returns their run ids."""
    removed = []
    with contextlib.suppress(FileNotFoundError):
        for run_id in os.listdir(RUNS):
            try:
                with open(f"{RUNS}/{run_id}/owner", encoding="ascii") as owner:
                    pid, started = owner.read().split()
            except (OSError, ValueError):
                continue  # being made or removed right now
            if _start_time(int(pid)) != int(started):
                remove(run_id)
                removed.append(run_id)
    return removed


def leftovers(run_id):
    """What of a lab still exists, as a list of sentences; empty after close()."""
    found = [f"namespace {name}" for name in netns.names(f"{PREFIX}-{run_id}-")]
    if os.path.exists(f"{RUNS}/{run_id}"):
        found.append(f"folder {RUNS}/{run_id}")
    if os.path.exists(_cgroup_of(run_id)):
        found.append(f"cgroup {_cgroup_of(run_id)}")
    with open("/proc/mounts", encoding="utf-8") as mounts:
        found += [f"mount {line.split()[1]}" for line in mounts if f"/{run_id}/" in line.split()[1]]
    return found


def execute(pod, command):
    """Becomes the command, inside the pod ([NAMESPACE.]NAME) of any lab that is open on this machine."""
    found = glob.glob(f"{RUNS}/*/*/pods/{pod}/place.json") + glob.glob(f"{RUNS}/*/*/pods/*.{pod}/place.json")
    if len(found) != 1:
        sys.exit(f"{'several pods match' if found else 'no open lab has a pod'} {pod}: {' '.join(found)}")
    with open(found[0], encoding="utf-8") as place:
        where = json.load(place)
    with processes.Place(where["netns"], where["cgroup"]).entering() as enter:
        enter()
    os.execvp(command[0], command)


def main(words):
    if words == ["sweep"]:
        for gone in sweep():
            print(f"removed what run {gone} had left")
    elif len(words) > 2 and words[0] == "exec":
        execute(words[1], words[2:])
    else:
        sys.exit("usage: lab.py sweep | lab.py exec POD COMMAND...")


if __name__ == "__main__":
    main(sys.argv[1:])
