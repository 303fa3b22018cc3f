"""However a cluster ends, nothing of it stays on the machine."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest
from minicluster import workloads
from minicluster.cluster import Cluster
from minicluster.hierarchies import hierarchies
from minicluster.plan import Plan
from waiting import wait_for

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
# What containerd, kubelet, kubectl, CNI and the control plane write by default
FOLDERS = ("/opt", "/run", "/run/netns", "/var/lib", "/var/log", "/etc", "/usr/libexec", "/sys/fs/bpf")
HOME_FILES = (".kube/cache/discovery/10.0.0.1_6443", ".cache/helm", ".config/helm", ".local/share/helm")
SYSCTLS = ("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "net/ipv4/ip_forward",
           "net/ipv6/conf/all/forwarding", "net/netfilter/nf_conntrack_max", "kernel/keys/root_maxkeys")
OTHERS = ("nmlab", "nodemesh-lab")  # labs of other tests on this machine come and go


def foreign(names):
    return {name for name in names if not any(other in name for other in OTHERS)}


def machine():
    """What a cluster might change: mounts, links, files and settings of the machine."""
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        seen = {"mounts": foreign(mounts.read().splitlines())}
    seen["links"] = foreign(name for _, name in socket.if_nameindex())
    seen["rules"] = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout
    for folder in FOLDERS:
        seen[folder] = foreign(os.listdir(folder)) if os.path.isdir(folder) else None
    for name in HOME_FILES:
        seen[name] = os.path.exists(os.path.expanduser(f"~/{name}"))
    for name in SYSCTLS:
        if os.path.exists(f"/proc/sys/{name}"):
            with open(f"/proc/sys/{name}", encoding="ascii") as source:
                seen[name] = source.read()
    return seen


def namespaces(pid):
    """The identities of a process' namespaces that this process does not share; empty where it is gone."""
    found = set()
    for kind in ("net", "mnt", "pid", "ipc", "uts", "cgroup"):
        try:
            own, other = (os.readlink(f"/proc/{one}/ns/{kind}") for one in ("self", pid))
        except OSError:
            continue
        found |= {other} - {own}
    return found


def processes():
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def programs():
    done = subprocess.run(["bpftool", "-j", "prog", "list"], capture_output=True, text=True, check=True)
    return {one["id"] for one in json.loads(done.stdout) if one.get("name") == "deny"}


def fill(cluster, program):
    """Gives the cluster what may outlive it: pods, a Service, BPF programs pinned and attached."""
    cluster.apply([workloads.namespace("rest"), *workloads.echo("echo", "rest", replicas=1)])
    cluster.ready_pods("app=echo", "rest")
    node = cluster.node(1)
    node.run(["bpftool", "prog", "load", program, "/sys/fs/bpf/deny"])
    node.run(["bpftool", "cgroup", "attach", f"{node.cgroup2}/kubepods", "connect4", "pinned", "/sys/fs/bpf/deny"])


def by_command(name, cgroup):
    command = [f"{ROOT}/scripts/cluster", "--name", name]
    subprocess.run([*command, "up", "--nodes", "1", "--cgroup", str(cgroup)], check=True)

    def end():
        subprocess.run([*command, "down"], check=True)

    return end


def by_killed_owner(name, cgroup):
    """SIGKILL stands for all ways to end a process: this one gives it no chance to clean up."""
    script = ("import sys; from minicluster.cluster import Cluster; from minicluster.plan import Plan;"
              f"Cluster.up(Plan({name!r}, 1, {cgroup}), owned=True); print('owned', flush=True); sys.stdin.read()")
    owner = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                             env={**os.environ, "PYTHONPATH": f"{HERE}:{ROOT}/tests/support"})
    for line in owner.stdout:
        if line == "owned\n":
            break

    def end():
        owner.kill()
        owner.wait(30)
        owner.stdin.close()
        owner.stdout.close()

    return end


def by_killed_keeper(name, cgroup):
    cluster = Cluster.up(Plan(name, 1, cgroup))

    def end():
        os.kill(cluster.keeper, signal.SIGKILL)
        cluster._keeper_process.wait(30)
        cluster.api.close()
        subprocess.run([f"{ROOT}/scripts/cluster", "--name", name, "down"], check=True)

    return end


@pytest.mark.parametrize(("make", "cgroup"), [
    pytest.param(by_command, 1, id="scripts/cluster down"),
    pytest.param(by_killed_owner, 2, id="its owner gets SIGKILL"),
    pytest.param(by_killed_keeper, 1, id="its keeper gets SIGKILL, then scripts/cluster down"),
])
def test_a_cluster_that_ends_leaves_nothing(make, cgroup, denying_program):
    if cgroup == 1 and not any(not is_cgroup2 for _, is_cgroup2 in hierarchies()):
        cgroup = 2  # a machine with cgroup2 alone
    before, programs_before = machine(), programs()
    name = f"ending-{os.getpid()}-{make.__name__}-{cgroup}"
    end = make(name, cgroup)
    try:
        cluster = Cluster(name)
        fill(cluster, denying_program)
        members = set().union(*(namespaces(pid) for pid in processes() if pid == cluster.keeper or _of(cluster, pid)))
        assert len(members) > 10 and programs() - programs_before
        assert machine() == before, "while it is up"
    finally:
        end()
    wait_for(lambda: not os.path.exists(cluster.plan.state), 30, f"{cluster.plan.state} is gone")
    wait_for(lambda: not any(namespaces(pid) & members for pid in processes()), 30, "no process in its namespaces")
    for mount, _ in hierarchies():
        assert not os.path.exists(f"{mount}/{cluster.plan.group}")
    wait_for(lambda: not programs() - programs_before, 30, "its BPF programs are gone")
    assert machine() == before


def _of(cluster, pid):
    """True if a process is in one of the cluster's cgroups."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="ascii") as source:
            return f"/{cluster.plan.group}/" in source.read()
    except OSError:
        return False
