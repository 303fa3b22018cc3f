"""The cluster's keeper: python3 -m minicluster.keeper PLAN [OWNED].

It starts everything and stays as long as the cluster is up. At SIGUSR1 it starts again every node and part of the control
plane that has ended and has no file of its name in <state>/off. At SIGTERM, or, where OWNED is given, when its standard
input ends, that is when the owner is gone, however that came about, it removes every trace. The cluster lives in a network
and a pid namespace of the keeper's: whatever a part of it does, it ends with process 1 of that pid namespace, and all its
links with the network.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time

import cgroups
from minicluster import binaries, certificates, control_plane
from minicluster.api import Api, condition
from minicluster.hierarchies import hierarchies
from minicluster.plan import CACHE, Plan
from waiting import wait_for

CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
PR_SET_PDEATHSIG = 1
FAILURE = f"{CACHE}/failed"
ENDING = 60  # seconds that killed processes have; an API server that holds much takes some, on a busy machine
HERE = os.path.dirname(os.path.abspath(__file__))
_libc = ctypes.CDLL(None, use_errno=True)


class Stop(Exception):
    """The cluster is to go down."""


def _unshare(flags):
    if _libc.unshare(flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "unshare")


def _python(module, *words):
    return ["/usr/bin/python3", "-B", "-m", f"minicluster.{module}", *(str(word) for word in words)]


class Keeper:
    def __init__(self, plan, owned):
        self.plan, self.owned = plan, owned
        self.started = time.monotonic()
        self.children = {}
        self.parts = {}  # of the control plane: name to command
        self.wire = -1
        self.asked = False  # to end, by a signal

    def say(self, text):
        print(f"{time.monotonic() - self.started:5.1f} s  {text}", flush=True)

    def check(self):
        """Raises Stop if the owner is gone or a signal came. The signal's handler does not: in the middle of a start it would
        lose the child, which then nobody collects, and process 1 would wait for that for ever."""
        if self.asked:
            raise Stop("it was asked to")
        if self.owned and select.select([0], [], [], 0)[0] and not os.read(0, 1):
            raise Stop("its owner ended")

    def wait(self, ready, seconds, what, needs=()):
        """Waits for ready(); fails at once, with the end of its log, when a process that it needs has ended."""

        def checked():
            self.check()
            for name in needs:
                if self.children[name].poll() is not None:
                    raise RuntimeError(f"{name} ended with {self.children[name].returncode}:\n{self.tail(name)}")
            return ready()

        wait_for(checked, seconds, what, every=0.1, ignore=(OSError,))

    def tail(self, name):
        with open(f"{self.plan.state}/log/{name}.log", encoding="utf-8", errors="replace") as log:
            return "".join(log.readlines()[-20:])

    def spawn(self, name, command, enter=None, **options):
        """Starts a process of the cluster; enter is called between fork and exec."""
        with open(f"{self.plan.state}/log/{name}.log", "ab") as log:
            self.children[name] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/",
                                                   start_new_session=True, preexec_fn=enter, **options)
        with open(f"{self.plan.state}/pids/{name}", "w", encoding="ascii") as out:
            out.write(str(self.children[name].pid))

    def start(self, name, command):
        """Starts a part of the control plane, in the cgroup of the machine beside the nodes."""
        machine = f"{cgroups.mount_point()}/{self.plan.group}/machine/cgroup.procs"

        def join():
            with open(machine, "w", encoding="ascii") as procs:
                procs.write("0")

        self.parts[name] = command
        self.spawn(name, command, enter=join)

    # --- the machine

    def isolate(self):
        """A network and a pid namespace of the cluster's own. Process 1 ends with this process, and all others with it."""
        _unshare(CLONE_NEWNET | CLONE_NEWPID)
        self.spawn("init", ["sleep", "infinity"], enter=lambda: _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL))
        self.wire = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def groups(self):
        """The cluster's cgroups: one below the root of every hierarchy, and in it one for each node."""
        for mount, is_cgroup2 in hierarchies():
            below = [f"node{number}" for number in self.plan.numbers] + (["machine"] if is_cgroup2 else [])
            for group in (self.plan.group, *(f"{self.plan.group}/{name}" for name in below)):
                os.makedirs(f"{mount}/{group}", exist_ok=True)
                self._prepare(mount, group)

    @staticmethod
    def _prepare(mount, group):
        """A cpuset takes no process before it names CPUs and memory; a cgroup2 hands on the controllers that it has."""
        for file in ("cpuset.cpus", "cpuset.mems"):
            if os.path.exists(f"{mount}/{file}") and not os.path.exists(f"{mount}/cgroup.controllers"):
                with open(f"{mount}/{file}", encoding="ascii") as source, \
                        open(f"{mount}/{group}/{file}", "w", encoding="ascii") as out:
                    out.write(source.read())
        if "/" not in group and os.path.exists(f"{mount}/{group}/cgroup.controllers"):
            with open(f"{mount}/{group}/cgroup.controllers", encoding="ascii") as source:
                wanted = " ".join(f"+{name}" for name in source.read().split())
            with open(f"{mount}/{group}/cgroup.subtree_control", "w", encoding="ascii") as out:
                out.write(wanted)

    def network(self):
        """The wire, a bridge: the control plane is on it as a machine beside the nodes, and routes to what is theirs."""
        plan = self.plan
        subprocess.run(["sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0",
                        "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"], check=True)
        lines = ["link set lo up", f"link add {plan.bridge} type bridge forward_delay 0"]
        lines += [f"addr add {plan.machine(family)}/{plan.wire_bits(family)} dev {plan.bridge}" for family in plan.families]
        lines.append(f"link set {plan.bridge} up")
        for family in plan.families:
            lines += [f"route add {plan.pods(number, family)} via {plan.node(number, family)}" for number in plan.numbers]
            # Services and load-balancer addresses by way of node 1, whose kube-proxy serves them
            lines += [f"route add {network} via {plan.node(1, family)}"
                      for network in (plan.services(family), plan.balancers(family))]
        subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)

    # --- nodes

    def boot(self, number):
        folder = self.plan.node_dir(number)
        os.makedirs(folder, exist_ok=True)
        for file in ("up", "pid"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{folder}/{file}")
        places = []
        for mount, _ in hierarchies():
            group = f"{mount}/{self.plan.group}/node{number}"
            for entry in os.scandir(group):  # of an earlier boot
                if entry.is_dir():
                    cgroups.remove(entry.path)
            places.append(f"{group}/cgroup.procs")

        def join():
            for place in places:
                with open(place, "w", encoding="ascii") as procs:
                    procs.write("0")

        self.spawn(f"node{number}", ["unshare", "--mount", "--net", "--pid", "--uts", "--ipc", "--cgroup", "--fork",
                                     "--kill-child", "--", *_python("node", self.plan.name, number, self.wire)],
                   enter=join, pass_fds=(self.wire,))

    def _is_off(self, name):
        """True for what has ended and nobody keeps off."""
        return self.children[name].poll() is not None and not os.path.exists(f"{self.plan.state}/off/{name}")

    def start_what_is_off(self):
        for name, command in list(self.parts.items()):
            if self._is_off(name):
                self.start(name, command)
        for number in self.plan.numbers:
            if not self._is_off(f"node{number}"):
                continue
            port = self.plan.port(number)
            self.wait(lambda: port not in (name for _, name in socket.if_nameindex()), 20, f"the link {port} is gone")
            self.boot(number)

    # --- from nothing to a cluster

    def up(self):
        plan = self.plan
        certificates.make(plan)
        for folder in ("pids", "off"):
            os.mkdir(f"{plan.state}/{folder}")
        self.groups()
        self.isolate()
        self.network()
        for number in plan.numbers:
            self.boot(number)
        self.say("certificates, network; nodes boot")
        self.start("etcd", control_plane.etcd(plan))
        self.start("kube-apiserver", control_plane.apiserver(plan))
        api = Api(plan)
        # refused while the server makes its own roles
        self.wait(lambda: self._ready(api), 90, "the API server is ready", needs=("etcd", "kube-apiserver"))
        self.say("API server ready")
        self.start("kube-controller-manager", control_plane.controller_manager(plan))
        self.start("kube-scheduler", control_plane.scheduler(plan))
        self.start("balancer", _python("balancer", plan.name))
        if plan.network_policy:
            self.start("policies", _python("policies", plan.name))
        self._objects(api)
        nodes = [f"node{number}" for number in plan.numbers]
        self.wait(lambda: all(condition(api.get(f"/api/v1/nodes/{name}"), "Ready") for name in nodes), 120,
                  "every node is Ready", needs=(*nodes, "kube-controller-manager", "kube-scheduler"))
        self.say("nodes ready")
        self.wait(lambda: condition(api.get("/apis/apps/v1/namespaces/kube-system/deployments/coredns"), "Available")
                  and all(os.path.exists(f"{plan.node_dir(number)}/up") for number in plan.numbers), 120,
                  "CoreDNS is available, images are loaded", needs=nodes)
        self.say("DNS ready, images loaded")
        api.close()

    @staticmethod
    def _ready(api):
        try:
            return api.raw("GET", "/readyz") == "ok"
        except RuntimeError:
            return False

    def _objects(self, api):
        """The nodes' pod ranges, before or after kubelet registers, so that CNI and routes can be static; and CoreDNS."""
        plan = self.plan
        for number in plan.numbers:
            ranges = [plan.pods(number, family) for family in plan.families]
            api.apply(f"/api/v1/nodes/node{number}", {"apiVersion": "v1", "kind": "Node", "metadata":
                      {"name": f"node{number}"}, "spec": {"podCIDR": ranges[0], "podCIDRs": ranges}})
        with open(f"{HERE}/../images/coredns.yaml", encoding="utf-8") as source:
            text = source.read()
        addresses = [plan.service(10, family) for family in plan.families]
        text = text.replace("ADDRESSES", json.dumps(addresses)).replace("ADDRESS", addresses[0])
        text = text.replace("FAMILIES", json.dumps([f"IPv{family}" for family in plan.families]))
        subprocess.run(["kubectl", "apply", "-f", "-"], input=text, text=True, check=True, stdout=subprocess.DEVNULL,
                       env={**os.environ, "KUBECONFIG": plan.kubeconfig(), "KUBECACHEDIR": f"{plan.state}/kubectl"},
                       timeout=60)

    def stay(self, wakeup):
        """Until the end: collects children, boots nodes when asked. Who waited for the start may be gone from now on."""
        self.say("ready")
        with open(f"{self.plan.state}/log/keeper.log", "ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        while True:
            self.check()
            readable, _, _ = select.select([wakeup, 0] if self.owned else [wakeup], [], [])
            if wakeup in readable:
                numbers = os.read(wakeup, 100)
                self.check()
                for name, child in list(self.children.items()):
                    if child.returncode is None and child.poll() is not None:
                        self.say(f"{name} ended with {child.returncode}")
                if signal.SIGUSR1 in numbers:
                    self.start_what_is_off()

    def end(self):
        """Removes every trace; a process that does not end fails it, but keeps nothing else from going."""
        late = []
        if "init" in self.children:
            self.children["init"].kill()
            until = time.monotonic() + ENDING
            # Process 1 stays until all others are collected, which those started here are by this process.
            for name, child in sorted(self.children.items(), key=lambda item: item[0] == "init"):
                try:
                    child.wait(max(1.0, until - time.monotonic()))
                except subprocess.TimeoutExpired:
                    late.append(f"{name} ({child.pid})")
        if late:
            self.say(f"killed, and not ended after {ENDING} s: {', '.join(late)}; the logs are in {FAILURE}")
            _save_logs(self.plan)
        remove(self.plan)
        if late:
            raise RuntimeError("processes that were killed did not end")


def remove(plan):
    """Removes what a cluster without a keeper left behind: processes, cgroups, and files whatever becomes of the rest."""
    try:
        for mount, is_cgroup2 in sorted(hierarchies(), key=lambda one: not one[1]):  # who is killed leaves the others too
            group = f"{mount}/{plan.group}"
            if os.path.isdir(group):
                if is_cgroup2:
                    cgroups.kill(group)
                cgroups.remove(group)
    finally:
        shutil.rmtree(plan.state, ignore_errors=False)


def lock(plan):
    """An exclusive lock that says that the cluster has a keeper; BlockingIOError where it has one already."""
    descriptor = os.open(f"{plan.state}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    return descriptor


def main(plan, owned):
    wakeup, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    keeper = Keeper(plan, owned)

    def stop(*_):
        keeper.asked = True

    for number, handler in ((signal.SIGTERM, stop), (signal.SIGINT, signal.SIG_IGN), (signal.SIGHUP, signal.SIG_IGN),
                            (signal.SIGUSR1, lambda *_: None), (signal.SIGCHLD, lambda *_: None)):
        signal.signal(number, handler)
    os.environ["PATH"] = f"{binaries.BIN}:{os.environ['PATH']}"
    held = lock(plan)
    plan.save()
    try:
        keeper.up()
        keeper.stay(wakeup)
    except Stop as reason:
        keeper.say(f"going down: {reason}")
    except BaseException:
        _save_logs(plan)
        keeper.say(f"failed; the logs are in {FAILURE}")
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            keeper.end()
        finally:
            os.close(held)


def _save_logs(plan):
    shutil.rmtree(FAILURE, ignore_errors=True)
    shutil.copytree(f"{plan.state}/log", FAILURE)


if __name__ == "__main__":
    values = json.loads(sys.argv[1])
    main(Plan(**{**values, "families": tuple(values["families"])}), len(sys.argv) > 2)
