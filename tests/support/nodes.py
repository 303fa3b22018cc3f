"""A lab's nodes and pods: how each is made as a namespace, how programs run in it, and a node's agent. Made by
Lab.node() and Node.pod(); see lab.py."""

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import uuid

import cgroups
import manifests
import netns
import processes
import prometheus
from waiting import wait_for

PREFIX = "nmlab"
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

    def end_sandbox(self):
        """Ends its processes and its namespace, as when a runtime is about to make the sandbox anew; create() does."""
        cgroups.kill(self.cgroup)
        netns.ip(self.node.netns, f"link del {self.link}\n", check=False)
        netns.delete(self.netns)

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
            annotations=None, ipv4=True, ipv6=True, apply=True, container="app", named=True):
        """Makes a pod on this node and its API object.

        ipv4 and ipv6: an address, True for the next free, or False. named: the object names the namespace.
        """
        number = next(self._addresses)
        chosen = [f"10.244.{self.index}.{number}" if ipv4 is True else ipv4,
                  f"fd00:244:{self.index}::{number:x}" if ipv6 is True else ipv6]
        netns_name = self.lab.netns_name(namespace, name)
        thing = manifests.pod(name, namespace, self.name, str(uuid.uuid5(uuid.NAMESPACE_OID, netns_name)),
                              [address for address in chosen if address], netns.path_of(netns_name) if named else None, labels,
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
        """Processes of this node's agent that run the program; workers: only those that do the work, with a warden's
        opener, and none while their supervisor is about to start another."""
        found = []
        for pid in cgroups.members(self.cgroup):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as line:
                words = line.read().split(b"\0")
                if os.path.basename(words[0]) == program.encode() and (not workers or b"--no-supervisor" in words):
                    found.append(pid)
        return found
