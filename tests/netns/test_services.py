"""Services: virtual addresses are resolved at the client's node, to endpoints that may serve."""

import pytest

import manifests
import programs
from lab import Lab
from mesh import Mesh
from waiting import wait_for

VIP4, VIP6, PORT = "10.96.0.10", "fd00:96::10", 80


@pytest.fixture(scope="module")
def mesh():
    with Lab() as lab:
        made = Mesh(lab, start=False)
        made.names = {pod.name: programs.podtool(pod, 8080, f"name:{pod.name}")
                      for pod in (made.neighbour, made.server, made.other)}
        lab.start()
        yield made


def web(pods, name="web", vips=(VIP4, VIP6), target=8080, conditions=None, **spec):
    port = {"name": "main", "port": PORT, "targetPort": target}
    slices = [manifests.endpoint_slice(name, "shop", [pod.object for pod in pods], [{"name": "main", "port": 8080}],
                                       family, conditions=conditions) for family in ("IPv4", "IPv6")]
    return [manifests.service(name, "shop", [port], vips, {"app": name}, **spec), *slices]


def answers(client, address, count=1, port=PORT):
    found = []
    for _ in range(count):
        result = client.tool("exchange", address, port, "--half-close", "--timeout", 5)
        found.append(result["head"].strip() or result["how"])
    return found


@pytest.mark.parametrize("vip", [VIP4, VIP6])
def test_a_virtual_address_leads_to_the_endpoints_near_and_far(mesh, vip):
    with mesh.objects(*web([mesh.neighbour, mesh.server])):
        wait_for(lambda: set(answers(mesh.client, vip, 20)) == {"neighbour", "server"}, 10, "both endpoints answer")
        result = mesh.client.tool("exchange", vip, PORT, "--half-close")
        assert result["peer"] == [vip, PORT], "the program still sees the address that it dialled"


def test_the_series_names_the_service(mesh):
    with mesh.objects(*web([mesh.server])):
        wait_for(lambda: answers(mesh.client, VIP4) == ["server"], 10, "the service answers")
        for node in (mesh.node1, mesh.node2):
            wait_for(lambda node=node: node.metrics().select(
                "istio_tcp_connections_opened_total", destination_service="web.shop.svc.cluster.local",
                destination_service_name="web", destination_service_namespace="shop"), 10, "the service's series")


def test_endpoints_that_are_not_ready_get_nothing_unless_published(mesh):
    waiting = {"ready": False, "serving": False, "terminating": False}
    with mesh.objects(*web([mesh.server], conditions=waiting)):
        with mesh.expect_reason(mesh.node1, "NO_ENDPOINTS"):
            assert answers(mesh.client, VIP4) == ["ECONNRESET"]
    with mesh.objects(*web([mesh.server], conditions=waiting, publishNotReadyAddresses=True)):
        wait_for(lambda: answers(mesh.client, VIP4) == ["server"], 10, "published although not ready")


def test_an_endpoint_that_terminates_serves_only_when_no_other_does(mesh):
    ending = {"ready": False, "serving": True, "terminating": True}
    with mesh.objects(*web([mesh.server], conditions=ending)):
        wait_for(lambda: answers(mesh.client, VIP4) == ["server"], 10, "the last one that still serves")


def test_a_port_that_the_service_does_not_have_is_refused(mesh):
    with mesh.objects(*web([mesh.server])):
        wait_for(lambda: answers(mesh.client, VIP4) == ["server"], 10, "the service answers")
        with mesh.expect_reason(mesh.node1, "NO_ROUTE"):
            assert answers(mesh.client, VIP4, port=81) == ["ECONNRESET"]


def test_local_traffic_policy_keeps_to_the_client_s_node(mesh):
    with mesh.objects(*web([mesh.neighbour, mesh.server], internalTrafficPolicy="Local")):
        wait_for(lambda: set(answers(mesh.client, VIP4, 10)) == {"neighbour"}, 10, "only the endpoint of this node")


@pytest.mark.parametrize("simple", ["ROUND_ROBIN", "RANDOM", "LEAST_REQUEST"])
def test_a_destination_rule_chooses_the_balancing(mesh, simple):
    rule = manifests.destination_rule("web", "shop", "web.shop.svc.cluster.local", simple)
    with mesh.objects(*web([mesh.neighbour, mesh.server, mesh.other]), rule):
        wait_for(lambda: "server" in answers(mesh.client, VIP4), 10, "the service answers")
        counts = {name: 0 for name in ("neighbour", "server", "other")}
        for name in answers(mesh.client, VIP4, 60):
            counts[name] += 1
        assert min(counts.values()) >= 5, counts
        if simple == "ROUND_ROBIN":  # each worker goes round by itself
            assert min(counts.values()) >= 15, counts


def test_a_change_of_endpoints_moves_new_connections(mesh):
    with mesh.objects(*web([mesh.neighbour])):
        wait_for(lambda: answers(mesh.client, VIP4) == ["neighbour"], 10, "the first endpoint answers")
        mesh.apply(*web([mesh.server]))
        wait_for(lambda: set(answers(mesh.client, VIP4, 5)) == {"server"}, 10, "the second endpoint answers")


def test_a_headless_service_s_addresses_go_to_exactly_that_pod(mesh):
    with mesh.objects(*web([mesh.neighbour, mesh.server], vips=())):
        assert answers(mesh.client, mesh.server.ipv4, 5, 8080) == ["server"] * 5
        assert answers(mesh.client, mesh.neighbour.ipv4, 5, 8080) == ["neighbour"] * 5


def test_a_named_target_port_is_the_pod_s_own(mesh):
    with mesh.objects(*web([mesh.server], target="http")):
        wait_for(lambda: answers(mesh.client, VIP4) == ["server"], 10, "the named port answers")
