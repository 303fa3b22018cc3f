"""The mesh with ordinary applications, on one installation: a shop of services that call one another, every kind of Service
and workload, and what happens to labels, nodes and agents. The tests stand in the order of a cluster's life; from the
one about STRICT on, servers refuse whatever is not mutual TLS."""

import ipaddress
import json

import pytest
from minicluster import bookshop, workloads
from minicluster.bookshop import BOOKS, SPACE, Shop, on
from minicluster.mesh import LABEL, NAMESPACE, Mesh, Wires, ask, wire
from minicluster.plan import bracketed

FAMILIES = pytest.mark.parametrize("family", ["ipv4", "ipv6"])


def shelf():
    """A StatefulSet behind a headless Service."""
    thing = workloads.deployment("shelf", SPACE, workloads.pod_spec(workloads.echo_container(), spread_by="shelf"), 3)
    thing["kind"] = "StatefulSet"
    thing["spec"].update(serviceName="shelf", podManagementPolicy="Parallel")
    return [thing, workloads.service("shelf", SPACE, {"http": (8080, "http")}, clusterIP="None")]


def cron_job():
    container = workloads.container(args=["get", "http://ratings:9080/by-the-clock"])
    return {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "clock", "namespace": SPACE}, "spec": {
        "schedule": "* * * * *", "jobTemplate": {"spec": {"backoffLimit": 0, "template": {"spec": workloads.pod_spec(
            container, restartPolicy="Never")}}}}}


@pytest.fixture(scope="module")
def mesh(cluster, chart, image):
    with Mesh.installed(cluster, chart, image) as made:
        made.agents()
        yield made
    cluster.delete("namespace", SPACE, "street")


@pytest.fixture(scope="module")
def shop(cluster, mesh):
    cluster.apply([
        workloads.namespace(SPACE, {LABEL: "ambient"}), workloads.namespace("street"),
        *bookshop.things(), *shelf(), cron_job(), *on("node1", "reader"), *on("node2", "steady"),
        workloads.service("steady", SPACE, {"http": (80, "http"), "tcp": (9000, "tcp")})])
    made = Shop(cluster)
    made.ready()
    for app in ("reader", "steady"):
        cluster.ready_pods(f"app={app}", SPACE)
    made.open_for_business(made.one("reader"))
    return made


def strict(name="default", **more):
    return {"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
            "metadata": {"name": name, "namespace": SPACE}, "spec": {"mtls": {"mode": "STRICT"}, **more}}


@FAMILIES
def test_every_call_of_the_shop_between_nodes_is_mutual_tls_on_the_wire_and_in_both_nodes_counts(cluster, mesh, shop, family):
    pods, reader = shop.ready(), shop.one("reader")
    pods[reader.name] = reader
    ours = {"source_workload_namespace": SPACE, "destination_workload_namespace": SPACE}

    def counted():  # of these clients alone: the clock calls whenever its minute has come
        pages = [mesh.metrics(agent) for agent in mesh.agents()]
        clients = ["reader", *(f"{app}-{version}" for app, version in bookshop.BOOKS)]
        return {(reporter, security): sum(page.sum("istio_tcp_connections_opened_total", reporter=reporter, source_workload=client,
                                                   connection_security_policy=security, **ours)
                                          for page in pages for client in clients)
                for reporter in ("source", "destination") for security in ("mutual_tls", "none")}

    before, calls = counted(), []
    with Wires(cluster, list(pods.values())) as wires:
        for _ in range(12):
            calls += shop.visit(reader, family, "/secret-page")
    reports = wires.require_hbone_only()
    assert set().union(*(report.versions for report in reports)) <= {"TLSv1.3"} and not wires.contains(b"/secret-page")
    for client, answer in calls:
        assert answer["client"].rsplit(":", 1)[0] == bracketed(getattr(pods[client], family))
    asked = {(client.rsplit("-", 2)[0], answer["pod"].rsplit("-", 2)[0]) for client, answer in calls}
    assert asked == {("reader", "productpage-v1"), ("productpage-v1", "details-v1"),
                     *((pair for version in ("v1", "v2", "v3") for pair in
                        (("productpage-v1", f"reviews-{version}"), (f"reviews-{version}", "ratings-v1"))))}
    crossed = sum(pods[client].node_name != answer["node"] for client, answer in calls)
    expected = {(reporter, security): before[reporter, security] + number for reporter in ("source", "destination")
                for security, number in (("mutual_tls", crossed), ("none", len(calls) - crossed))}
    assert crossed >= 12
    cluster.wait(lambda: counted() == expected, 20, lambda: f"{counted()} is {expected}, of {before}")


@FAMILIES
def test_each_pod_of_a_stateful_set_is_reached_by_its_own_name(cluster, shop, family):
    books = cluster.ready_pods("app=shelf", SPACE, count=3)
    with Wires(cluster, books) as wires:
        for one in books:
            answer = cluster.wait(lambda one=one: ask(shop.one("reader"), f"http://{one.name}.shelf:8080/", "-family",
                                                      "tcp" + family[-1]), 30, f"{one.name} answers")
            assert answer["pod"] == one.name and answer["local"] == f"{bracketed(getattr(one, family))}:8080"
        seen = {ask(shop.one("reader"), "http://shelf:8080/", "-family", "tcp" + family[-1])["pod"] for _ in range(12)}
    assert seen <= {one.name for one in books}
    wires.require_hbone_only()


def test_a_network_policy_holds_through_the_mesh_on_one_node_and_between_nodes(cluster, mesh, shop):
    """It admits reader (node 1) and neighbour (node 2) to steady (node 2), and port 15008 to everybody: a CNI lets tunnels
    pass, sees nothing of the same-node shortcut, and the mesh has to refuse passenger (node 1) and lodger (node 2)."""
    cluster.apply([*on("node2", "neighbour"), *on("node2", "lodger"), *on("node1", "passenger")])
    admitted, refused = ([shop.one(name) for name in names] for names in (("reader", "neighbour"), ("lodger", "passenger")))
    steady = shop.one("steady")

    def reached(clients):
        return [ask(client, f"http://{bracketed(getattr(steady, family))}:8080/") is not None
                for client in clients for family in ("ipv4", "ipv6")]

    def denials():
        return mesh.count("nodemesh_connections_total", reason="POLICY_NO_ALLOW")

    cluster.wait(lambda: all(reached(admitted + refused)), 30, "everybody reaches steady")
    cluster.apply({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "guests", "namespace": SPACE},
                   "spec": {"podSelector": {"matchLabels": {"app": "steady"}}, "ingress": [
                       {"ports": [{"port": 15008}]}, {"ports": [{"port": "http"}], "from": [{"podSelector": {"matchExpressions": [
                           {"key": "app", "operator": "In", "values": ["reader", "neighbour"]}]}}]}]}})
    cluster.wait(lambda: not any(reached(refused)), 30, "the policy is in force")
    before = denials()
    with Wires(cluster, [steady]) as wires:
        assert reached(admitted) == [True] * 4 and reached(refused) == [False] * 4
    wires.require_hbone_only()
    assert denials() == {**before, "node2": before["node2"] + 4}
    lines = [line for line in mesh.log("node2").splitlines() if f"NetworkPolicy {SPACE}/guests" in line]
    assert all(any(pod.ipv4 in line for line in lines) for pod in refused) and lines
    assert not any(pod.ipv4 in line for line in lines for pod in admitted)
    assert shop.one("steady").restarts == steady.restarts
    cluster.delete("networkpolicy", "guests", namespace=SPACE)
    cluster.wait(lambda: all(reached(refused)), 30, "everybody reaches steady again")
    cluster.delete("pod", "neighbour", "lodger", "passenger", namespace=SPACE)


def node_port(cluster, shop):
    cluster.apply(workloads.service("front", SPACE, {"http": (80, "http")}, kind="NodePort", selector={"app": "productpage"}))
    return cluster.api.get(f"/api/v1/namespaces/{SPACE}/services/front")["spec"]["ports"][0]["nodePort"]


@pytest.fixture(scope="module")
def porter(cluster, shop):
    """A pod in the host's network, in a namespace that is in the mesh."""
    container = workloads.container(args=["-http", "18080", "-tcp", "19000"])
    cluster.apply(on("node1", "porter", container, hostNetwork=True, dnsPolicy="ClusterFirstWithHostNet"))
    return shop.one("porter")


@FAMILIES
def test_node_ports_and_pods_of_the_hosts_network_are_plain_and_never_in_the_mesh(cluster, mesh, shop, porter, family):
    port = node_port(cluster, shop)
    for node in cluster.nodes:
        url = f"http://{bracketed(getattr(node, family))}:{port}/outside"
        assert "error" not in cluster.wait(lambda url=url: cluster.reach(url).stdout, 20, f"{url} answers")
        assert ask(porter, url)["pod"].startswith("productpage")
    steady, server = shop.one("steady"), f"http://{bracketed(getattr(shop.one('steady'), family))}:8080"
    with wire(cluster, [steady]) as capture:
        assert ask(porter, f"{server}/from-the-host")["client"].rsplit(":", 1)[0] == bracketed(getattr(cluster.node(1), family))
        assert ask(steady, f"http://{bracketed(getattr(porter, family))}:18080/to-the-host")["pod"] == "porter"
    report = capture.report()
    assert report.contains(b"GET /from-the-host") and report.contains(b"GET /to-the-host")
    assert shop.visit(porter, family), "a client of the host's network reaches Services"
    slices = cluster.api.get("/apis/nodemesh.dev/v1alpha1/workloadslices")
    assert porter.uid not in json.dumps(slices) and steady.uid in json.dumps(slices)


def tally(pod):
    """The last line of what `echo load` says."""
    return json.loads(pod.cluster.kubectl("logs", "-n", pod.namespace, pod.name, "--tail=1"))


def since(pod, before):
    """What load has met since an earlier tally: requests, failed ones by cause, ends of lasting connections by cause."""
    now = tally(pod)

    def more(name):
        growth = {cause: number - before[name].get(cause, 0) for cause, number in now[name].items()}
        return {cause: number for cause, number in growth.items() if number}

    return {"requests": now["requests"] - before["requests"], "longest gap ms": now["gap"],
            **{name: more(name) for name in ("failures", "ends", "refused")}}


def load(cluster, shop, name):
    """A pod of node 1 that keeps asking steady, of node 2, and connections to it open."""
    cluster.apply(on("node1", name, workloads.container(args=["load", "http://steady/", "steady:9000"])))
    pod = shop.one(name)
    cluster.wait(lambda: tally(pod)["requests"] > 20 and tally(pod)["turns"] > 20, 30, "the load is steady")
    return pod


def requests_on_the_wire(cluster, pod):
    """A recording of the requests of a load, without its lasting connections."""
    return cluster.capture(cluster.node(1), filter=["tcp", "and", "not", "port", "9000", "and", "(", *" or ".join(
        f"host {address}" for address in pod.addresses).split(), ")"])


def leaks(report):
    """What was no HBONE. A recording of a tunnel that is busy may lack a piece where it begins."""
    return [line for line in report.violations if "bytes are missing" not in line]


def test_labels_taken_off_and_put_on_under_load_change_what_is_on_the_wire_and_fail_little(cluster, mesh, shop, capsys):
    pod = load(cluster, shop, "runner")

    def seen(plain):
        """A recording in which requests are plain, or HBONE alone. Lasting connections stay in their tunnel meanwhile."""
        with requests_on_the_wire(cluster, pod) as capture:
            asked = tally(pod)["requests"]
            cluster.wait(lambda: tally(pod)["requests"] > asked + 30, 30, "requests go on")
        report = capture.report()
        if plain:
            return sum(b"GET / HTTP/1.1" in stream.data()[0] for stream in report.streams.values()) >= 20
        return report.application_records and not leaks(report)

    assert seen(plain=False)
    for change, plain in ((f"{LABEL}-", True), (f"{LABEL}=ambient", False)):
        before = tally(pod)
        cluster.kubectl("label", "namespace", SPACE, change)
        cluster.wait(lambda plain=plain: seen(plain), 60, f"after {change} requests are {'plain' if plain else 'HBONE'}")
        met = since(pod, before)
        with capsys.disabled():
            print(f"\n  {change}: {met}")
        assert sum(met["failures"].values()) <= 40 and not met["ends"]
    pod.delete()
    shop.open_for_business(shop.one("reader"))


def test_probes_of_every_kind_pass_under_strict_and_plaintext_enters_only_where_a_port_permits_it(cluster, mesh, shop, porter):
    before = shop.ready()
    port = node_port(cluster, shop)
    outside = f"http://{cluster.node(1).ipv4}:{port}/outside"
    cluster.apply(strict())
    cluster.wait(lambda: ask(porter, f"http://{shop.one('steady').ipv4}:8080/") is None and not cluster.reach(outside).stdout,
                 30, "STRICT is in force")
    # Pods that start now have each of their probes passed from the beginning.
    for app, version in BOOKS:
        cluster.kubectl("rollout", "restart", "-n", SPACE, f"deployment/{app}-{version}")
    for app, version in BOOKS:
        cluster.rollout(f"deployment/{app}-{version}", SPACE, 120)
    pods = shop.ready()
    assert set(pods).isdisjoint(before)
    shop.open_for_business(shop.one("reader"))
    passed = mesh.count("nodemesh_kernel_events_total", event="probe_passed")
    nodes = {pod.node_name for pod in pods.values()}

    def probed():  # many more than the probes that a pod may fail in a row
        now = mesh.count("nodemesh_kernel_events_total", event="probe_passed")
        return all(now[node] >= passed[node] + 20 for node in nodes)

    cluster.wait(probed, 60, "probes pass on every node")
    assert {name: pod.restarts for name, pod in shop.ready().items()} == dict.fromkeys(pods, 0)
    assert not cluster.reach(outside).stdout
    cluster.apply(strict("front", selector={"matchLabels": {"app": "productpage"}},
                         portLevelMtls={8080: {"mode": "PERMISSIVE"}}))
    cluster.wait(lambda: cluster.reach(outside).stdout, 30, "the one port that may be asked from outside answers")
    assert ask(porter, f"http://{shop.one('steady').ipv4}:8080/") is None


def job(name, containers, init=(), **more):
    spec = workloads.pod_spec(*containers, restartPolicy="Never", initContainers=list(init), serviceAccountName="reader")
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": SPACE}, "spec": {
        "backoffLimit": 0, "template": {"metadata": {"labels": {"app": name}}, "spec": spec}, **more}}


def asking(name, path):
    """A container that asks ratings once, and fails if it gets no answer."""
    return {**workloads.container(args=["get", f"http://ratings:9080/{path}"]), "name": name}


def test_jobs_and_init_containers_call_through_the_mesh_and_end_and_a_sidecar_ends_with_them(cluster, mesh, shop):
    ratings = shop.one("ratings")
    sidecar = {**workloads.echo_container(), "name": "sidecar", "restartPolicy": "Always"}
    local = {**workloads.container(args=["get", "http://127.0.0.1:8080/to-the-sidecar"]), "name": "local"}
    with Wires(cluster, [ratings]) as wires:
        cluster.apply([
            job("once", [asking("main", "job")], completions=6, parallelism=6),
            job("prepared", [asking("main", "main")], [asking("first", "first"), asking("second", "second")]),
            job("accompanied", [asking("main", "accompanied"), local], [sidecar, asking("after", "after-the-sidecar")])])
        for name in ("once", "prepared", "accompanied"):
            def done(name=name):
                status = cluster.api.get(f"/apis/batch/v1/namespaces/{SPACE}/jobs/{name}")["status"]
                return status.get("completionTime") and not status.get("failed")
            cluster.wait(done, 90, lambda name=name: f"job {name} has completed:\n" + cluster.kubectl(
                "describe", "pods", "-n", SPACE, "-l", f"app={name}", check=False) + cluster.kubectl(
                "logs", "-n", SPACE, "-l", f"app={name}", "--all-containers", "--prefix", check=False))
    wires.require_hbone_only()
    served = ratings.logs()
    for path, times in (("job", 6), ("main", 1), ("first", 1), ("second", 1), ("accompanied", 1), ("after-the-sidecar", 1)):
        assert served.count(f"GET /{path} ") == times
    # An agent has let go of pods that have ended, so they do too, at once.
    cluster.delete("job", "once", "prepared", "accompanied", namespace=SPACE)
    cluster.wait(lambda: not any(cluster.pods(f"app={name}", SPACE) for name in ("once", "prepared", "accompanied")), 60,
                 "their pods are gone")


def test_a_pod_of_a_stateful_set_comes_back_under_its_name_with_another_address(cluster, shop):
    books = cluster.ready_pods("app=shelf", SPACE, count=3)
    old, reader = books[1], shop.one("reader")
    old.delete()
    new = cluster.wait(lambda: next((pod for pod in cluster.ready_pods("app=shelf", SPACE, 3) if pod.name == old.name and
                                     pod.uid != old.uid), None), 60, f"{old.name} is back")
    with Wires(cluster, [new]) as wires:
        for family in ("ipv4", "ipv6"):
            def answered(family=family):
                answer = ask(reader, f"http://{new.name}.shelf:8080/", "-family", "tcp" + family[-1])
                return answer and answer["local"] == f"{bracketed(getattr(new, family))}:8080"
            cluster.wait(answered, 60, f"{new.name} answers by its new address")
        one = next(pod for pod in cluster.ready_pods("app=shelf", SPACE, 3) if pod.node_name != new.node_name)
        assert ask(one, f"http://{bracketed(new.ipv6)}:8080/")["pod"] == new.name
    wires.require_hbone_only()


def give_next(node, addresses):
    """Makes the CNI plugin give these addresses to the next pod of a node: it goes on from the last that it gave."""
    folder = "/var/lib/cni/networks/cluster"
    for number, address in enumerate(addresses):
        kept = f"{folder}/{address}"
        node.cluster.wait(lambda kept=kept: node.run(["ls", kept], check=False).returncode != 0, 30, f"{address} is free")
        before = ipaddress.ip_address(address) - 1
        node.run(["sh", "-c", f"printf %s {before} > {folder}/last_reserved_ip.{number}"])


def test_who_gets_the_address_of_a_pod_that_ended_gets_nothing_else_of_it(cluster, mesh, shop):
    """lender may ask details; borrower, with lender's address and another service account, may not."""
    details = shop.one("details")
    node = next(node for node in cluster.nodes if node.name != details.node_name)
    cluster.apply([*on(node.name, "lender"), {
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "lender", "namespace": SPACE},
        "spec": {"selector": {"matchLabels": {"app": "details"}}, "rules": [{"from": [{"source": {"principals": [
            f"cluster.local/ns/{SPACE}/sa/{name}"]}} for name in ("lender", "bookinfo-productpage")]}]}}])
    lender, reader, url = shop.one("lender"), shop.one("reader"), f"http://{details.ipv4}:8080/"
    cluster.wait(lambda: ask(reader, url) is None, 30, "the policy is in force")
    assert ask(lender, url) and ask(details, f"http://{lender.ipv4}:8080/")["pod"] == "lender"
    lender.delete()
    cluster.wait(lambda: not cluster.pods("app=lender", SPACE), 30, "lender is gone")
    give_next(node, lender.addresses)
    cluster.apply(on(node.name, "borrower"))
    borrower = shop.one("borrower")
    assert borrower.addresses == lender.addresses
    with Wires(cluster, [borrower]) as wires:
        for _ in range(10):
            assert ask(borrower, url) is None
        assert cluster.wait(lambda: ask(details, f"http://{borrower.ipv4}:8080/"), 30)["pod"] == "borrower"
    wires.require_hbone_only()
    principal = f"spiffe://cluster.local/ns/{SPACE}/sa/borrower"
    denied = mesh.count("istio_tcp_connections_failed_total", reporter="destination", source_principal=principal)
    assert denied[details.node_name] == 10
    cluster.delete("authorizationpolicy", "lender", namespace=SPACE)
    borrower.delete()
    shop.open_for_business(reader)


def test_a_drained_nodes_pods_move_and_the_shop_goes_on_and_the_node_comes_back(cluster, mesh, shop):
    moved = {pod.name for pod in shop.ready().values() if pod.node_name == "node3"}
    try:
        cluster.kubectl("drain", "node3", "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=100s",
                        timeout=120)
        pods = shop.ready()
        assert moved and moved.isdisjoint(pods) and {pod.node_name for pod in pods.values()} == {"node1", "node2"}
        shop.open_for_business(shop.one("reader"))
        with Wires(cluster, [*pods.values(), shop.one("reader")]) as wires:
            for family in ("ipv4", "ipv6") * 2:
                assert shop.visit(shop.one("reader"), family)
        wires.require_hbone_only()
    finally:
        cluster.kubectl("uncordon", "node3")
    # A pod that is killed moves where there is room again.
    for pod in shop.ready().values():
        if pod.name.startswith("reviews"):
            cluster.kubectl("delete", "pod", "-n", SPACE, pod.name, "--grace-period=0", "--force")
    cluster.wait(lambda: "node3" in {pod.node_name for pod in shop.ready().values()}, 60, "a pod runs on node3 again")
    shop.open_for_business(shop.one("reader"))


def test_a_node_that_lost_its_power_comes_back_into_the_mesh_with_its_pods(cluster, mesh, shop):
    before = [pod for pod in cluster.node(2).pods(SPACE) if pod.ready]  # and none of a job that has ended
    assert before
    cluster.node(2).restart()

    def back():
        pods = {pod.uid: pod for pod in cluster.pods(namespace=SPACE)}
        return all(pods[pod.uid].ready and pods[pod.uid].restarts > pod.restarts for pod in before)

    cluster.wait(back, 90, "the same pods run again")
    mesh.agents()
    shop.open_for_business(shop.one("reader"))
    pods = [pod for pod in cluster.node(2).pods(SPACE) if pod.ready]
    with Wires(cluster, pods) as wires:
        for family in ("ipv4", "ipv6") * 3:
            assert shop.visit(shop.one("reader"), family)
            assert ask(shop.one("reader"), f"http://{bracketed(getattr(shop.one('steady'), family))}:8080/")
    wires.require_hbone_only()


def test_an_upgrade_under_load_replaces_agents_and_controllers_and_costs_no_request(cluster, mesh, shop, capsys):
    pod, agents = load(cluster, shop, "upgrader"), {agent.uid for agent in mesh.agents()}
    before = tally(pod)
    mesh.upgrade("--set", "agent.podLabels.round=two", "--set", "controller.podLabels.round=two")
    cluster.rollout("deployment/nodemesh-controller", NAMESPACE, seconds=120)
    cluster.wait(lambda: all("deletionTimestamp" in one.object["metadata"] for one in cluster.pods(
        "app.kubernetes.io/component=agent", NAMESPACE) if one.uid in agents), 240, "every old agent was told to end")
    asked = tally(pod)["requests"]
    cluster.wait(lambda: tally(pod)["requests"] > asked + 50, 30, "requests go on")
    settled, met = tally(pod), since(pod, before)
    with capsys.disabled():
        print(f"\n  upgrade: {met}")
    with requests_on_the_wire(cluster, pod) as capture:
        cluster.wait(lambda: tally(pod)["requests"] > settled["requests"] + 50, 30, "requests go on")
    report = capture.report()
    assert report.application_records and not leaks(report)
    assert tally(pod)["failures"] == settled["failures"]
    assert not met["failures"] and not met["ends"], met
    pod.delete()
    # An agent that was replaced stays until its last connection has ended.
    cluster.rollout("daemonset/nodemesh-agent", NAMESPACE, seconds=240)
    assert agents.isdisjoint(agent.uid for agent in mesh.agents())


def test_the_cron_job_has_run_by_the_clock_meanwhile(cluster, shop):
    def succeeded():
        jobs = cluster.api.get(f"/apis/batch/v1/namespaces/{SPACE}/jobs")["items"]
        return [one for one in jobs if one["metadata"]["name"].startswith("clock-") and one["status"].get("succeeded")]

    cluster.wait(succeeded, 70, "a job of the clock has succeeded")


def test_after_all_of_that_uninstall_leaves_nothing_and_the_shop_talks_plainly(cluster, mesh, shop):
    mesh.uninstall()
    assert mesh.left_behind() == []
    pods, reader = shop.ready(), shop.one("reader")
    with Wires(cluster, list(pods.values())) as wires:
        for family in ("ipv4", "ipv6"):
            cluster.wait(lambda family=family: shop.visit(reader, family, "/plain-page"), 30, "a visit")
    assert wires.contains(b"GET /plain-page")
