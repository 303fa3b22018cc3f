"""What a cluster is to be: its size, addresses and places. Plain values, known to every process of the cluster."""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os

CACHE = os.environ.get("NODEMESH_CLUSTER_CACHE") or os.path.expanduser("~/.cache/nodemesh-cluster")
MAX_NODES = 9
PREFIX = "nodemesh-cluster-"
STATES = "/dev/shm"  # a tmpfs: unpacked images come and go fastest there, and nothing survives a reboot


@dataclasses.dataclass(frozen=True)
class Plan:
    """One cluster. Two clusters may have the same addresses, since each has a network of its own; they differ by name.

    cgroup is 1 where the nodes see the machine's v1 hierarchies with cgroup2 beside them, 2 where they see cgroup2
    alone. families lists the IP families, the preferred one first.
    """

    name: str = "default"
    nodes: int = 3
    cgroup: int = 1
    families: tuple = (4, 6)
    network_policy: bool = False
    audit: str = ""  # the user whose requests the API server writes to log/audit.log

    @property
    def state(self):
        """The folder of everything that the cluster writes."""
        return f"{STATES}/{PREFIX}{self.name}"

    @property
    def group(self):
        """The name of the cluster's cgroup in every hierarchy."""
        return f"{PREFIX}{self.name}"

    @property
    def bridge(self):
        return "wire"

    def port(self, node):
        """The bridge's port to a node: the place to see what is on the wire."""
        return f"node{node}"

    @property
    def numbers(self):
        return range(1, self.nodes + 1)

    def machine(self, family):
        """The control plane's address: a machine beside the nodes, on the same wire."""
        return {4: "10.0.0.1", 6: "fd00:10::1"}[family]

    def node(self, number, family):
        return {4: f"10.0.0.1{number}", 6: f"fd00:10::1{number}"}[family]

    def wire_bits(self, family):
        return {4: 24, 6: 64}[family]

    def pods(self, number, family):
        """The range of a node's pods."""
        return {4: f"10.244.{number}.0/24", 6: f"fd00:244:0:{number}::/64"}[family]

    def all_pods(self, family):
        return {4: "10.244.0.0/16", 6: "fd00:244::/48"}[family]

    def services(self, family):
        return {4: "10.96.0.0/16", 6: "fd00:96::/112"}[family]

    def service(self, number, family):
        """A fixed address of the Service range: 1 is the API server's, 10 the DNS server's."""
        return {4: f"10.96.0.{number}", 6: f"fd00:96::{number:x}"}[family]

    def balancers(self, family):
        """The range of load-balancer addresses."""
        return {4: "10.150.0.0/24", 6: "fd00:150::/112"}[family]

    @property
    def api(self):
        return f"https://{bracketed(self.machine(self.families[0]))}:6443"

    def hardware_address(self, node):
        """The same after every boot: with another one its neighbours would not reach it until their entries expired."""
        octet = hashlib.sha256(self.name.encode()).hexdigest()[:2]
        return f"02:00:0a:00:{octet}:1{node}"

    def kubeconfig(self, user="admin"):
        return f"{self.state}/pki/{user}.conf"

    def node_dir(self, number):
        return f"{self.state}/nodes/{number}"

    def save(self):
        with open(f"{self.state}/plan.json", "w", encoding="utf-8") as out:
            json.dump(dataclasses.asdict(self), out)


@contextlib.contextmanager
def locked_cache(part):
    """One process at a time makes this part of the cache, which clones of the repository share."""
    os.makedirs(CACHE, exist_ok=True)
    with open(f"{CACHE}/lock-{part}", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def load(name):
    """The plan of a cluster that exists; FileNotFoundError where none of that name does."""
    with open(f"{Plan(name).state}/plan.json", encoding="utf-8") as source:
        values = json.load(source)
    return Plan(**{**values, "families": tuple(values["families"])})


def bracketed(address):
    """The address as it stands before a port."""
    return f"[{address}]" if ":" in address else address
