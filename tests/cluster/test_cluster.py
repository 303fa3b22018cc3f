"""The cluster itself, without the mesh: it is a Kubernetes cluster, and what other tests judge by can fail."""

import json
import os
import socket

import netns
import pytest
import yaml
from minicluster import workloads
from minicluster.plan import bracketed


@pytest.fixture(scope="module")
def shop(cluster):
    """One echo pod on each node, behind one Service."""
    cluster.apply([workloads.namespace("shop"), *workloads.echo("echo", "shop", kind="LoadBalancer")])
    return cluster.ready_pods("app=echo", "shop", count=3)


def ask(pod, url):
    """The answer that an echo pod gets from another one."""
    return json.loads(pod.exec(["/echo", "get", url]))


def test_three_nodes_are_ready_with_addresses_and_pod_ranges_of_both_families(cluster):
    for node in cluster.nodes:
        thing = node.object()
        addresses = {entry["address"] for entry in thing["status"]["addresses"] if entry["type"] == "InternalIP"}
        assert addresses == {node.ipv4, node.ipv6}
        assert thing["spec"]["podCIDRs"] == [f"10.244.{node.number}.0/24", f"fd00:244:0:{node.number}::/64"]
        assert thing["status"]["nodeInfo"]["kubeletVersion"] == "v1.34.4"


def test_the_nodes_share_neither_processes_nor_links_nor_sysctls_with_the_machine(cluster):
    names = {node.run(["hostname"]).stdout.strip() for node in cluster.nodes}
    assert names == {"node1", "node2", "node3"}
    for node in cluster.nodes:
        processes = node.run(["ps", "-e", "-o", "comm="]).stdout.split()
        assert processes.count("kubelet") == 1 and "kube-apiserver" not in processes
        assert str(os.getpid()) not in node.run(["ps", "-e", "-o", "pid="]).stdout.split()
    with open("/proc/sys/kernel/panic_on_oops", encoding="ascii") as machine:
        assert cluster.node(1).run(["cat", "/proc/sys/kernel/panic_on_oops"]).stdout == "1\n"
        assert machine.read() != "1\n"
    links = {name for _, name in socket.if_nameindex()}
    with netns.entered(cluster.netns):
        inside = {name for _, name in socket.if_nameindex()}
    assert {"wire", "node1", "node2", "node3"} <= inside and not links & {"wire", "node1", "node2", "node3"}


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_pods_of_every_pair_of_nodes_talk_and_the_server_sees_the_clients_address(shop, family):
    assert {pod.node_name for pod in shop} == {"node1", "node2", "node3"}
    for client in shop:
        for server in shop:
            answer = ask(client, f"http://{bracketed(getattr(server, family))}:8080/")
            assert (answer["pod"], answer["node"]) == (server.name, server.node_name)
            assert answer["client"].rsplit(":", 1)[0] == bracketed(getattr(client, family))


def test_a_service_answers_by_name_and_by_both_its_addresses_on_every_node(cluster, shop):
    service = cluster.api.get("/api/v1/namespaces/shop/services/echo")
    addresses = service["spec"]["clusterIPs"]
    assert [":" in address for address in addresses] == [False, True]
    for pod in shop:
        for host in ("echo", "echo.shop.svc.cluster.local", *map(bracketed, addresses)):
            assert ask(pod, f"http://{host}/")["pod"] in {one.name for one in shop}


def test_what_is_outside_reaches_a_service_by_node_port_and_load_balancer_address(cluster, shop):
    def service():
        return cluster.api.get("/api/v1/namespaces/shop/services/echo")

    given = cluster.wait(lambda: service()["status"]["loadBalancer"].get("ingress"), 20, "a load-balancer address")
    assert [":" in entry["ip"] for entry in given] == [False, True]
    port = next(entry["nodePort"] for entry in service()["spec"]["ports"] if entry["name"] == "http")
    urls = [f"http://{bracketed(entry['ip'])}/" for entry in given]
    urls += [f"http://{bracketed(address)}:{port}/" for node in cluster.nodes for address in (node.ipv4, node.ipv6)]
    for url in urls:
        cluster.wait(lambda url=url: cluster.reach(url).returncode == 0, 20, f"{url} answers")


def test_logs_exec_and_port_forward_work_on_every_node(cluster, shop):
    for pod in shop:
        assert f"echo: {pod.name} serves HTTP" in pod.logs()
        assert pod.exec(["/echo", "ok"]) == ""
        with pytest.raises(RuntimeError, match="ended with 1"):
            pod.exec(["/echo", "get", "http://127.0.0.1:8080/status/503"])
        with cluster.port_forward(f"pod/{pod.name}", 8080, namespace="shop") as port:
            done = cluster.reach(f"http://127.0.0.1:{port}/")
            assert json.loads(done.stdout)["pod"] == pod.name, done.stderr


def test_a_capture_on_a_node_shows_what_its_pods_send_to_other_nodes(cluster, shop):
    client, server = shop[0], shop[1]
    with cluster.capture(cluster.node(1)) as capture:
        ask(client, f"http://{server.ipv4}:8080/capture-me")
        ask(client, f"http://{client.ipv4}:8080/not-on-the-wire")
    report = capture.report()
    assert report.contains(b"GET /capture-me") and not report.contains(b"/not-on-the-wire")
    with pytest.raises(AssertionError):
        report.require_hbone_only()


def test_ordinary_programs_run_in_the_tools_image(cluster):
    cluster.apply([workloads.namespace("programs"), workloads.tools("web", "programs", "node2"),
                   workloads.tools("client", "programs", "node3")])
    cluster.ready_pods("app=web", "programs")
    cluster.ready_pods("app=client", "programs")
    web, = cluster.pods("app=web", "programs")
    client, = cluster.pods("app=client", "programs")
    web.exec(["sh", "-c", "nginx > /tmp/log 2>&1 &"])
    url = f"http://{bracketed(web.ipv6)}/"
    cluster.wait(lambda: client.exec(["curl", "-s", url], check=False) == f"web sees {client.ipv6}\n", 20, "nginx answers")
    assert "OpenSSL 3" in client.exec(["python3", "-c", "import http.client, json, ssl; print(ssl.OPENSSL_VERSION)"])
    assert "eth0" in client.exec(["ip", "-br", "link"])


def test_a_bpf_program_at_a_nodes_cgroup_root_is_that_nodes_alone(cluster, shop, denying_program):
    node = cluster.node(2)
    pin = "/sys/fs/bpf/deny"
    pods = f"{node.cgroup2}/kubepods"
    node.run(["bpftool", "prog", "load", denying_program, pin])
    node.run(["bpftool", "cgroup", "attach", pods, "connect4", "pinned", pin])
    try:
        with pytest.raises(RuntimeError, match="operation not permitted"):
            ask(shop[1], f"http://{shop[0].ipv4}:8080/")
        assert ask(shop[0], f"http://{shop[1].ipv4}:8080/")["pod"] == shop[1].name
        assert "deny" not in cluster.node(3).run(["ls", "/sys/fs/bpf"]).stdout
    finally:
        node.run(["bpftool", "cgroup", "detach", pods, "connect4", "pinned", pin])
        node.run(["rm", pin])
    assert ask(shop[1], f"http://{shop[0].ipv4}:8080/")["pod"] == shop[0].name


ENTER = """
import ctypes, glob, os, subprocess
seen = set()
for path in glob.glob("/host/proc/[0-9]*/ns/net"):
    if os.stat(path).st_ino in seen: continue
    seen.add(os.stat(path).st_ino)
    space = os.open(path, os.O_RDONLY)
    enter = lambda: ctypes.CDLL(None).setns(space, 0x40000000)
    print(subprocess.run(["ip", "-br", "-4", "addr"], preexec_fn=enter, capture_output=True, text=True).stdout)
"""


def test_a_pod_with_an_agents_mounts_enters_its_nodes_pods_and_sees_no_other_node(cluster, shop):
    volumes, mounts = workloads.host_mounts(proc=("/proc", "/host/proc", None), bpf=("/sys/fs/bpf", "/sys/fs/bpf", "Bidirectional"),
                                            cgroup=("/sys/fs/cgroup", "/host/cgroup", None))
    cluster.apply([workloads.namespace("agent"), workloads.pod("agent", "agent", workloads.pod_spec(
        workloads.container("tools", securityContext={"privileged": True}, **mounts), nodeName="node3", **volumes))])
    pod, = cluster.ready_pods("app=agent", "agent")
    commands = pod.exec(["sh", "-c", "cat /host/proc/[0-9]*/comm 2> /dev/null; true"]).split()
    assert commands.count("kubelet") == 1 and "kube-apiserver" not in commands
    seen = pod.exec(["python3", "-c", ENTER])
    assert f"{shop[2].ipv4}/" in seen and f"{cluster.node(3).ipv4}/" in seen
    assert "10.244.1." not in seen and cluster.node(1).ipv4 not in seen
    group = pod.exec(["sh", "-c", f"find /host/cgroup -type d -path '*pod{shop[2].uid}*' | head -1"]).strip()
    assert "/kubepods/" in group and "node3" not in group
    pod.exec(["mkdir", "/sys/fs/bpf/agent"])
    assert "agent" in cluster.node(3).run(["ls", "/sys/fs/bpf"]).stdout.split()
    assert "agent" not in cluster.node(1).run(["ls", "/sys/fs/bpf"]).stdout.split()
    pod.exec(["rmdir", "/sys/fs/bpf/agent"])


def test_helm_installs_a_chart_and_takes_it_away(cluster, tmp_path):
    chart = tmp_path / "chart"
    (chart / "templates").mkdir(parents=True)
    (chart / "Chart.yaml").write_text("apiVersion: v2\nname: sample\nversion: 1.2.3\n", encoding="utf-8")
    (chart / "templates" / "map.yaml").write_text(yaml.safe_dump(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "sample"}, "data": {"at": "{{ .Chart.Version }}"}}),
        encoding="utf-8")
    cluster.helm("install", "sample", chart, "--namespace", "charts", "--create-namespace", "--wait")
    assert cluster.api.get("/api/v1/namespaces/charts/configmaps/sample")["data"] == {"at": "1.2.3"}
    cluster.helm("uninstall", "sample", "--namespace", "charts", "--wait")
    assert "sample" not in cluster.kubectl("get", "configmaps", "-n", "charts", "-o", "name")


def test_a_node_comes_back_after_a_power_failure_with_its_pods_and_the_others_serve_meanwhile(cluster, shop):
    node, before = cluster.node(2), shop[1]
    node.power_off()
    try:
        for pod in (shop[0], shop[2]):
            assert ask(pod, f"http://{bracketed(shop[0].ipv6)}:8080/")["pod"] == shop[0].name
        done = cluster.reach(f"http://{before.ipv4}:8080/", "--connect-timeout", "1")
        assert done.returncode != 0
    finally:
        node.power_on()
    node.wait_ready()

    def back():
        pod, = (one for one in cluster.pods("app=echo", "shop") if one.uid == before.uid)
        return pod if pod.ready and pod.restarts > before.restarts else None

    pod = cluster.wait(back, 60, "the same pod runs again")
    assert ask(shop[0], f"http://{pod.ipv4}:8080/")["pod"] == pod.name
    assert ask(pod, "http://echo/")["pod"]


@pytest.mark.parametrize("part", ["kube-apiserver", "etcd"])
def test_pods_talk_on_while_a_part_of_the_control_plane_is_away_and_nothing_is_forgotten(cluster, shop, part):
    with cluster.without(part):
        assert cluster.kubectl("get", "pods", "-n", "shop", "--request-timeout=2s", check=False) == ""
        here, there = cluster.node(1), shop[2]
        inside = here.run(["curl", "-sS", "--max-time", "5", f"http://{bracketed(there.ipv6)}:8080/"]).stdout
        assert json.loads(inside)["pod"] == there.name
    assert {pod.uid for pod in cluster.pods("app=echo", "shop")} == {pod.uid for pod in shop}
    assert ask(shop[0], "http://echo/")["pod"]
