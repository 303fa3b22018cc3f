"""The cluster's stand-in for a CNI plugin that enforces NetworkPolicy: it closes what policies close, and no more."""

import pytest
from minicluster import workloads
from minicluster.plan import bracketed


@pytest.fixture(scope="module")
def bank(cluster):
    """Three echo pods behind a Service, and two clients: teller in their namespace, visitor in another."""
    cluster.apply([workloads.namespace("bank"), *workloads.echo("vault", "bank"), workloads.namespace("avenue", {"kind": "out"}),
                   *workloads.echo("teller", "bank", replicas=1), *workloads.echo("visitor", "avenue", replicas=1)])
    found = {name: cluster.ready_pods(f"app={name}", namespace, count)
             for name, namespace, count in (("vault", "bank", 3), ("teller", "bank", 1), ("visitor", "avenue", 1))}
    return {"vault": found["vault"], "teller": found["teller"][0], "visitor": found["visitor"][0]}


def policy(name, **spec):
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name, "namespace": "bank"},
            "spec": {"podSelector": {"matchLabels": {"app": "vault"}}, **spec}}


def reached(client, pods):
    """The names of the pods that answer a client, by both families; never what is expected where one family answers."""
    found = set()
    for pod in pods:
        answers = {_answers(client, address) for address in pod.addresses}
        if len(answers) == 2:
            return {f"{client.name} reaches {pod.name} by one family only"}
        if answers == {True}:
            found.add(pod.name)
    return found


def _answers(client, address):
    command = ["/echo", "-timeout", "1s", "get", f"http://{bracketed(address)}:8080/healthz"]
    return client.exec(command, check=False) == "ok\n"


def test_a_policy_lets_in_only_those_that_it_names_on_every_node_and_by_both_families(cluster, bank):
    vaults = {pod.name for pod in bank["vault"]}
    assert reached(bank["visitor"], bank["vault"]) == reached(bank["teller"], bank["vault"]) == vaults
    cluster.apply(policy("tellers", ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "teller"}}}],
                                             "ports": [{"port": "http"}]}]))
    cluster.wait(lambda: not reached(bank["visitor"], bank["vault"]), 20, "the visitor is shut out")
    assert reached(bank["teller"], bank["vault"]) == vaults
    assert all(pod.ready for pod in cluster.pods("app=vault", "bank")), "probes come from the node"
    cluster.apply(policy("visitors", ingress=[{"from": [{"namespaceSelector": {"matchLabels": {"kind": "out"}}}]}]))
    cluster.wait(lambda: reached(bank["visitor"], bank["vault"]) == vaults, 20, "a second policy adds to the first")
    cluster.delete("networkpolicy", "tellers", "visitors", namespace="bank")


def test_an_egress_policy_holds_its_pods_to_what_it_names(cluster, bank):
    inside = bank["vault"][0]
    others = [bank["vault"][1], bank["teller"]]
    block = {"cidr": "0.0.0.0/0", "except": [f"{bank['teller'].ipv4}/32"]}
    six = {"cidr": "::/0", "except": [f"{bank['teller'].ipv6}/128"]}
    cluster.wait(lambda: len(reached(inside, others)) == 2, 20, "nothing is shut")
    cluster.apply(policy("out", policyTypes=["Egress"], egress=[{"to": [{"ipBlock": block}, {"ipBlock": six}]}]))
    cluster.wait(lambda: reached(inside, others) == {bank["vault"][1].name}, 20, "the teller cannot be reached")
    assert len(reached(bank["teller"], bank["vault"])) == 3
    cluster.delete("networkpolicy", "out", namespace="bank")
