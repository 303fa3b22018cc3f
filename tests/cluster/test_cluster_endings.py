"""However a cluster ends, nothing of it stays on the machine; and its command line, as people type it."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys

import pytest
from minicluster import mesh as meshes
from minicluster import workloads
from minicluster.cluster import Cluster
from minicluster.hierarchies import hierarchies
from minicluster.plan import CACHE, Plan
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


def _forked(keeper):
    """True while a child of the keeper is not yet another program."""
    with open(f"/proc/{keeper}/task/{keeper}/children", encoding="ascii") as source:
        for pid in source.read().split():
            with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as line:
                if b"minicluster.keeper" in line.read():
                    return True
    return False


CHART = {"Chart.yaml": "{apiVersion: v2, name: note, version: 1.0.0}",
         "templates/note.yaml": "{apiVersion: v1, kind: ConfigMap, metadata: {name: note}, data: {text: {{ .Values.text }}}}"}


@pytest.fixture(scope="module")
def line():
    """scripts/cluster with its words, on a cluster of one node: CompletedProcess."""
    name = f"line-{os.getpid()}"

    def run(*words, code=0):
        done = subprocess.run([f"{ROOT}/scripts/cluster", "--name", name, *words], capture_output=True, text=True, check=False,
                              stdin=subprocess.DEVNULL)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    run.cluster = Cluster.up(Plan(name, 1), owned=True)
    try:
        yield run
    finally:
        run("down")


def test_what_people_type_reaches_the_api_server_the_wire_and_the_node(line, tmp_path):
    assert line.cluster.plan.name in line("status").stdout.split()
    assert "node1" in line("kubectl", "get", "nodes", "-o", "name").stdout
    assert "NotFound" in line("kubectl", "get", "pod", "nonesuch", code=1).stderr
    for file, text in CHART.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text, encoding="utf-8")
    line("helm", "install", "note", str(tmp_path), "--set", "text=hello")
    assert line("kubectl", "get", "configmap", "note", "-o", "jsonpath={.data.text}").stdout == "hello"
    # beside the nodes: pods answer, kubectl knows the cluster
    dns, = json.loads(line("kubectl", "get", "pods", "-n", "kube-system", "-o", "json").stdout)["items"]
    assert line("exec", "--", "curl", "-sS", f"http://{dns['status']['podIP']}:8080/health").stdout == "OK"
    assert line("exec", "kubectl", "version").stdout
    line("exec", "false", code=1)
    # on the node
    assert line("node", "1", "hostname").stdout == "node1\n"
    images = ("node", "1", "--", "ctr", "-n", "k8s.io", "images")
    line(*images, "rm", "localhost/tools:1")
    assert "localhost/tools:1" not in line(*images, "ls", "-q").stdout
    line("load-image", f"{CACHE}/images/tools.tar")
    assert "localhost/tools:1" in line(*images, "ls", "-q").stdout


def test_a_node_that_is_restarted_by_the_command_has_booted_anew_and_is_ready(line):
    boot = line("node", "1", "readlink", "/proc/1/ns/pid").stdout
    assert "node1 is Ready again" in line("restart-node", "1").stdout
    assert line("node", "1", "readlink", "/proc/1/ns/pid").stdout != boot
    line("kubectl", "wait", "--for=condition=Ready", "node/node1", "--timeout=5s")


def test_a_cluster_that_is_to_end_while_a_part_of_it_starts_ends(line):
    """Its keeper is asked to end between the fork and the exec of a part that it starts again."""
    cluster = line.cluster
    part = f"{cluster.plan.state}/pids/kube-scheduler"
    with open(part, encoding="ascii") as source:
        pid = int(source.read())
    cluster.switch_off("kube-scheduler", pid)
    written = os.stat(part).st_mtime_ns
    cluster.switch_on("kube-scheduler")
    wait_for(lambda: _forked(cluster.keeper) or os.stat(part).st_mtime_ns != written, 20, "the keeper starts it", every=0)
    cluster.down()  # fails where the keeper did
    assert not os.path.exists(cluster.plan.state)
    assert f"no cluster named {cluster.plan.name} is up" in line("kubectl", "version", code=1).stderr


def test_the_quickstart_on_a_cluster_holds_what_it_claims_and_leaves_nothing():
    before = machine()
    done = subprocess.run(["/usr/bin/python3", f"{ROOT}/scripts/quickstart_cluster.py", "--once"], capture_output=True,
                          text=True, check=False, env={**os.environ, "NODEMESH_BUILD_DIR": meshes.BUILD})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every claim holds; nothing is left" in done.stdout and done.stdout.count("holds: ") >= 6
    assert not os.path.exists(Plan("quickstart").state)
    assert machine() == before


def _of(cluster, pid):
    """True if a process is in one of the cluster's cgroups."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="ascii") as source:
            return f"/{cluster.plan.group}/" in source.read()
    except OSError:
        return False
