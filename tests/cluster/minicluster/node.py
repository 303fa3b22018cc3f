"""Process 1 of a node: python3 -m minicluster.node CLUSTER NUMBER WIRE.

It starts in fresh mount, network, pid, UTS, IPC and cgroup namespaces (WIRE is a descriptor of the cluster's network
namespace), makes the node's file systems, addresses and configuration, and starts containerd, kubelet and kube-proxy.
Killing it is the node's power failure: everything of the node ends with it but the files in its folder, its disk.
"""

import json
import os
import shutil
import ssl
import subprocess
import sys
import time
import urllib.request

import waiting
from minicluster.plan import CACHE, load

BEFORE_KUBELET = ("pause", "coredns")
# kubelet sets these for the whole machine. It finds a file with the value that it wants in their place.
SYSCTLS = {"vm/overcommit_memory": 1, "vm/panic_on_oom": 0, "kernel/panic": 10, "kernel/panic_on_oops": 1,
           "kernel/keys/root_maxkeys": 1000000, "kernel/keys/root_maxbytes": 25000000}
CONTAINERD = """version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  disable_apparmor = true
  restrict_oom_score_adj = true  # a machine without CAP_SYS_RESOURCE refuses lower ones
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{folder}/cni"
"""
WITHOUT_LIMITS = """  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = "{folder}/runc-without-limits"
"""


def run(*words, **options):
    subprocess.run([str(word) for word in words], check=True, **options)


def write(path, text):
    with open(path, "w", encoding="utf-8") as out:
        out.write(text)


class Node:
    def __init__(self, plan, number, wire):
        self.plan, self.number, self.wire = plan, number, wire
        self.name, self.folder = f"node{number}", plan.node_dir(number)
        self.cgroup2 = "/sys/fs/cgroup" if plan.cgroup == 2 else "/sys/fs/cgroup/unified"
        self.addresses = [plan.node(number, family) for family in plan.families]

    def mounts(self):
        """What the node writes lies in its own folder; what it sees of the kernel is its own."""
        for path in ("var/lib", "var/log", "opt"):
            os.makedirs(f"{self.folder}/{path}", exist_ok=True)
            run("mount", "--bind", f"{self.folder}/{path}", f"/{path}")
        for kind, path in (("tmpfs", "/run"), ("proc", "/proc"), ("sysfs", "/sys"), ("bpf", "/sys/fs/bpf")):
            run("mount", "-t", kind, kind, path)
        if self.plan.cgroup == 2:
            run("mount", "-t", "cgroup2", "cgroup", "/sys/fs/cgroup")
        else:
            self._mount_hierarchies()
        os.makedirs(f"{self.folder}/sysctl", exist_ok=True)
        for file, value in SYSCTLS.items():
            own = f"{self.folder}/sysctl/{os.path.basename(file)}"
            write(own, f"{value}\n")
            run("mount", "--bind", own, f"/proc/sys/{file}")
        run("mount", "--make-rshared", "/")  # for mountPropagation

    def _mount_hierarchies(self):
        run("mount", "-t", "tmpfs", "tmpfs", "/sys/fs/cgroup")
        with open("/proc/self/cgroup", encoding="ascii") as lines:
            for line in lines.read().splitlines():
                names = line.split(":")[1]
                folder = f"/sys/fs/cgroup/{names.removeprefix('name=') or 'unified'}"
                os.mkdir(folder)
                if not names:
                    run("mount", "-t", "cgroup2", "cgroup", folder)
                else:
                    option = f"none,{names}" if names.startswith("name=") else names
                    run("mount", "-t", "cgroup", "-o", option, "cgroup", folder)

    def cgroups(self):
        """The node's own processes leave the root of its cgroup2, as a service manager would have it: a group that
        hands controllers to its children may hold no process."""
        self._join("system")
        with open(f"{self.cgroup2}/cgroup.controllers", encoding="ascii") as source:
            self.controllers = source.read().split()
        if self.controllers:
            write(f"{self.cgroup2}/cgroup.subtree_control", " ".join(f"+{name}" for name in self.controllers))

    def _join(self, group):
        os.makedirs(f"{self.cgroup2}/{group}", exist_ok=True)
        write(f"{self.cgroup2}/{group}/cgroup.procs", "0")

    def network(self):
        """eth0 on the wire, and static routes to the pods of the other nodes."""
        plan, number = self.plan, self.number
        run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv6.conf.all.accept_dad=0",
            "net.ipv6.conf.default.accept_dad=0")
        lines = ["link set lo up", f"link add eth0 address {plan.hardware_address(number)} type veth peer name "
                 f"{plan.port(number)} netns /proc/self/fd/{self.wire}"]
        lines += [f"addr add {plan.node(number, family)}/{plan.wire_bits(family)} dev eth0" for family in plan.families]
        lines.append("link set eth0 up")
        for family in plan.families:
            lines.append(f"-{family} route add default via {plan.machine(family)}".removeprefix("-4 "))
            lines += [f"route add {plan.pods(other, family)} via {plan.node(other, family)}"
                      for other in plan.numbers if other != number]
        for line in lines:
            run("ip", *line.split(), pass_fds=(self.wire,))
        run("nsenter", f"--net=/proc/self/fd/{self.wire}", "ip", "link", "set", plan.port(number), "master", plan.bridge,
            "up", pass_fds=(self.wire,))
        os.close(self.wire)

    def configuration(self):
        plan, folder = self.plan, self.folder
        os.makedirs(f"{folder}/cni", exist_ok=True)
        destinations = {4: "0.0.0.0/0", 6: "::/0"}
        write(f"{folder}/cni/10-cluster.conflist", json.dumps({
            "cniVersion": "1.0.0", "name": "cluster", "plugins": [{"type": "ptp", "ipMasq": False, "ipam": {
                "type": "host-local", "dataDir": "/var/lib/cni/networks",
                "ranges": [[{"subnet": plan.pods(self.number, family)}] for family in plan.families],
                "routes": [{"dst": destinations[family]} for family in plan.families]}}]}))
        limits = plan.cgroup == 1 or {"cpu", "memory", "pids"} <= set(self.controllers)
        write(f"{folder}/containerd.toml", (CONTAINERD + ("" if limits else WITHOUT_LIMITS)).format(folder=folder))
        shutil.copy(f"{os.path.dirname(__file__)}/runc-without-limits", folder)
        write(f"{folder}/resolv.conf", f"nameserver {plan.machine(plan.families[0])}\n")
        write(f"{folder}/kubelet.json", json.dumps(self._kubelet()))
        write(f"{folder}/kube-proxy.json", json.dumps({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "mode": "nftables",
            "hostnameOverride": self.name, "clientConnection": {"kubeconfig": plan.kubeconfig("kube-proxy")},
            "clusterCIDR": ",".join(plan.all_pods(family) for family in plan.families),
            "detectLocalMode": "ClusterCIDR",
            # the table of connections is the machine's, not the node's: kube-proxy must leave its size alone
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"}}))

    def _kubelet(self):
        pki = f"{self.plan.state}/pki"
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration", "failCgroupV1": False,
            "cgroupDriver": "cgroupfs",  # containerd 1.6 cannot tell kubelet its own
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "authentication": {"anonymous": {"enabled": False}, "webhook": {"enabled": True},
                               "x509": {"clientCAFile": f"{pki}/ca.crt"}},
            "authorization": {"mode": "Webhook"}, "tlsCertFile": f"{pki}/{self.name}.crt",
            "tlsPrivateKeyFile": f"{pki}/{self.name}.key", "clusterDomain": "cluster.local",
            "clusterDNS": [self.plan.service(10, self.plan.families[0])], "resolvConf": f"{self.folder}/resolv.conf",
            "failSwapOn": False, "volumePluginDir": "/var/lib/kubelet/plugins-exec",
            "imageGCHighThresholdPercent": 100,  # an image that was collected could not be fetched again
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%",
                             "nodefs.inodesFree": "1%"}}

    def spawn(self, *words, group=None):
        with open(f"{self.plan.state}/log/{self.name}-{words[0]}.log", "ab") as log:
            return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                                    preexec_fn=(lambda: self._join(group)) if group else None)

    def _load(self, names):
        for name in names:
            run("ctr", "-n", "k8s.io", "images", "import", f"{CACHE}/images/{name}.tar", stdout=subprocess.DEVNULL)

    def _wait_for_api(self):
        context = ssl.create_default_context(cafile=f"{self.plan.state}/pki/ca.crt")

        def ready():
            with urllib.request.urlopen(f"{self.plan.api}/readyz", timeout=5, context=context):
                return True

        waiting.wait_for(ready, 120, "the API server is ready", every=0.2, ignore=(OSError,))

    def start(self):
        daemons = {self.spawn("containerd", "--config", f"{self.folder}/containerd.toml").pid: "containerd"}
        answered = ["ctr", "version"]
        waiting.wait_for(lambda: subprocess.run(answered, capture_output=True, check=False).returncode == 0, 30,
                         "containerd answers", every=0.1)
        # A node that boots again has its images on its disk.
        first_boot = not os.path.exists(f"{self.folder}/loaded")
        if first_boot:
            self._load(BEFORE_KUBELET)
        self._wait_for_api()
        # kubelet alone in a group: its probes can be told from other traffic by that
        daemons[self.spawn("kubelet", f"--config={self.folder}/kubelet.json", f"--hostname-override={self.name}",
                           f"--kubeconfig={self.plan.kubeconfig(self.name)}", f"--node-ip={','.join(self.addresses)}",
                           group="kubelet").pid] = "kubelet"
        daemons[self.spawn("kube-proxy", f"--config={self.folder}/kube-proxy.json").pid] = "kube-proxy"
        if first_boot:
            self._load(name.removesuffix(".tar") for name in sorted(os.listdir(f"{CACHE}/images"))
                       if name.endswith(".tar") and name.removesuffix(".tar") not in BEFORE_KUBELET)
            write(f"{self.folder}/loaded", "")
        write(f"{self.folder}/up", str(time.time()))
        return daemons


def main(name, number, wire):
    plan = load(name)
    folder = plan.node_dir(number)
    os.makedirs(folder, exist_ok=True)
    write(f"{folder}/pid", os.readlink("/proc/self"))  # /proc is still the machine's, so this is the number seen outside
    node = Node(plan, number, wire)
    run("hostname", node.name)
    node.mounts()
    node.cgroups()
    node.network()
    node.configuration()
    daemons = node.start()
    print("up", flush=True)
    while True:  # as process 1 it collects every orphan of the node
        pid, status = os.wait()
        if pid in daemons:
            print(f"{daemons[pid]} ended with status {os.waitstatus_to_exitcode(status)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
