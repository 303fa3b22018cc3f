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
from nodes import PREFIX, Node
from waiting import wait_for

OPEN = []  # the labs of this process that are open, for a failed test's report
RUNS = "/run/nodemesh-lab"
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


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
