"""Enforces NetworkPolicy as a CNI plugin would: python3 -m minicluster.policies CLUSTER, beside the nodes.

A stand-in, so that tests see that the mesh opens nothing that a CNI closed. It reads policies, pods and namespaces twice a
second and writes one nftables table into each node's network namespace, at the forward hook: there a connection already
has its pod's address, and what the node itself sends to its pods (probes) does not pass. networking.k8s.io/v1, all fields
but SCTP.
"""

import contextlib
import subprocess
import sys
import time

import netns
from minicluster.api import Api, ApiError
from minicluster.plan import load

TABLE = "network-policy"
EMPTY = f"table inet {TABLE} {{}}\ndelete table inet {TABLE}\n"


def selects(selector, labels):
    """metav1.LabelSelector on labels; an empty one selects everything."""
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for one in selector.get("matchExpressions", []):
        key, values = one["key"], one.get("values", [])
        held = {"In": labels.get(key) in values, "NotIn": labels.get(key) not in values, "Exists": key in labels,
                "DoesNotExist": key not in labels}[one["operator"]]
        if not held:
            return False
    return True


def _labels(thing):
    return thing["metadata"].get("labels", {})


def _addresses(pod):
    return [entry["ip"] for entry in pod.get("status", {}).get("podIPs", [])]


def _of_pods(thing):
    """True for pods with addresses of their own."""
    return (not thing["spec"].get("hostNetwork") and _addresses(thing)
            and thing["status"].get("phase") not in ("Succeeded", "Failed"))


class World:
    """The objects of one moment."""

    def __init__(self, policies, pods, namespaces):
        self.policies = policies
        self.pods = [pod for pod in pods if _of_pods(pod)]
        self.namespaces = {thing["metadata"]["name"]: _labels(thing) for thing in namespaces}

    def peers(self, peer, namespace):
        """The pods that a peer of a policy in a namespace stands for."""
        def fits(pod):
            home = pod["metadata"]["namespace"]
            wanted = selects(peer["namespaceSelector"], self.namespaces.get(home, {})) if "namespaceSelector" in peer \
                else home == namespace
            return wanted and selects(peer.get("podSelector", {}), _labels(pod))

        return [pod for pod in self.pods if fits(pod)]

    def selecting(self, pod, kind):
        """The policies of a kind (Ingress, Egress) that select a pod."""
        for policy in self.policies:
            spec = policy["spec"]
            kinds = spec.get("policyTypes") or ["Ingress", *(["Egress"] if "egress" in spec else [])]
            if (kind in kinds and policy["metadata"]["namespace"] == pod["metadata"]["namespace"]
                    and selects(spec.get("podSelector", {}), _labels(pod))):
                yield policy


def _family(address):
    return "ip6" if ":" in address else "ip"


def _port_matches(ports, server):
    """nft matches for the ports of a rule, [""] for all; a name means what it means on the server pod, and nothing where
    that is unknown."""
    if not ports:
        return [""]
    found = []
    for port in ports:
        protocol = port.get("protocol", "TCP").lower()
        number = port.get("port")
        if isinstance(number, str):
            named = [one["containerPort"] for container in (server or {"spec": {"containers": []}})["spec"]["containers"]
                     for one in container.get("ports", []) if one.get("name") == number]
            found += [f"{protocol} dport {one}" for one in named]
        elif number is None:
            found.append(f"meta l4proto {protocol}")
        else:
            found.append(f"{protocol} dport {number}" + (f"-{port['endPort']}" if "endPort" in port else ""))
    return found


def _allowed(world, policy, pod, kind):
    """The nft rules by which one policy lets a pod's traffic of a kind pass: they return, so that what leaves one pod still
    comes to the chain of the pod that it goes to."""
    side, key, field = ("saddr", "from", "ingress") if kind == "Ingress" else ("daddr", "to", "egress")
    for rule in policy["spec"].get(field, []):
        if not rule.get(key):
            yield from (f"{match} return" for match in _port_matches(rule.get("ports"), pod if kind == "Ingress" else None))
        for peer in rule.get(key) or []:
            if "ipBlock" in peer:
                block = peer["ipBlock"]
                where = f"{_family(block['cidr'])} {side} {block['cidr']}"
                for hole in block.get("except", []):
                    where += f" {_family(hole)} {side} != {hole}"
                yield from (f"{where} {match} return"
                            for match in _port_matches(rule.get("ports"), pod if kind == "Ingress" else None))
                continue
            for other in world.peers(peer, policy["metadata"]["namespace"]):
                for match in _port_matches(rule.get("ports"), pod if kind == "Ingress" else other):
                    yield from (f"{_family(address)} {side} {address} {match} return" for address in _addresses(other))


def ruleset(world, node):
    """The nftables text of a node: for each selected pod of the node a chain that ends with a drop."""
    forward, chains = ["type filter hook forward priority 0", "ct state established,related accept"], []
    for kind, side in (("Egress", "saddr"), ("Ingress", "daddr")):
        for pod in world.pods:
            policies = list(world.selecting(pod, kind))
            if pod["spec"].get("nodeName") != node or not policies:
                continue
            name = f"{kind.lower()}-{pod['metadata']['uid']}"
            rules = [rule for policy in policies for rule in _allowed(world, policy, pod, kind)]
            chains.append(f"chain {name} {{\n" + "".join(f"  {rule}\n" for rule in [*rules, "counter drop"]) + "}")
            forward += [f"{_family(address)} {side} {address} jump {name}" for address in _addresses(pod)]
    body = "\n".join([*chains, "chain forward {\n" + "".join(f"  {rule};\n" for rule in forward) + "}"])
    return f"table inet {TABLE} {{\n{body}\n}}\n"


def write(plan, number, text):
    """Replaces the table on a node in one transaction; False while the node is off."""
    try:
        with open(f"{plan.node_dir(number)}/pid", encoding="ascii") as source:
            descriptor = netns.path_of(f"/proc/{source.read()}/ns/net")
        with netns.entered(descriptor):
            done = subprocess.run(["nft", "-f", "-"], input=EMPTY + text, text=True, capture_output=True, check=False)
    except (OSError, ValueError):
        return False
    if done.returncode != 0:
        print(f"node{number}: {done.stderr}\n{text}", flush=True)
    return done.returncode == 0


def current(api):
    return World(api.get("/apis/networking.k8s.io/v1/networkpolicies")["items"], api.get("/api/v1/pods")["items"],
                 api.get("/api/v1/namespaces")["items"])


def main(name):
    plan = load(name)
    api = Api(plan)
    written = {}
    while True:
        with contextlib.suppress(ApiError, OSError):  # the API server is away: what was written stays
            world = current(api)
            for number in plan.numbers:
                with contextlib.suppress(OSError), open(f"{plan.node_dir(number)}/pid", encoding="ascii") as source:
                    state = (source.read(), ruleset(world, f"node{number}"))
                    if written.get(number) != state and write(plan, number, state[1]):
                        written[number] = state
        time.sleep(0.5)


if __name__ == "__main__":
    main(sys.argv[1])
