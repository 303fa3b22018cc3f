"""meshctl against running nodes: what it says is what is."""

import json

import pytest

import manifests
from mesh import ECHO
from waiting import wait_for


def meshctl(mesh, *words, check=True):
    return mesh.node1.run([mesh.lab.binary("meshctl"), "--run-dir", f"{mesh.lab.dir}/run", *words], check=check)


def items(mesh, *words):
    return json.loads(meshctl(mesh, *words, "-o", "json").stdout)["items"]


def test_status_tells_of_every_node(mesh):
    rows = {row["node"]: row for row in items(mesh, "status")}
    assert set(rows) == {"node1", "node2"}
    assert all(row["ready"] and row["warden"]["connected"] and row["generation"] > 0 for row in rows.values())
    assert all(0 <= row["config_age_s"] <= row["uptime_s"] + 1 < 600 for row in rows.values()), rows
    table = meshctl(mesh, "status").stdout.splitlines()
    assert table[0].split() == ["NODE", "READY", "VERSION", "WARDEN", "GENERATION", "CONFIG", "AGE", "REJECTED", "UPTIME"]
    assert all(len(line.split()) == 8 for line in table[1:]), "no column is empty"


@pytest.mark.parametrize("words", [("nodemesh-warden",), ("nodemesh-proxy",), ("nodemesh-controller",),
                                   ("meshctl", "node", "run")])
def test_wrong_usage_ends_every_program_with_exit_code_2_and_a_way_to_help(mesh, words):
    done = mesh.node1.run([mesh.lab.binary(words[0]), *words[1:], "--nonsense"], check=False)
    assert done.returncode == 2 and "--help" in done.stderr and not done.stdout
    assert mesh.node1.run([mesh.lab.binary(words[0]), *words[1:], "--help"]).stdout


def test_workloads_are_told_with_identity_and_protocol(mesh):
    rows = {(row["namespace"], row["name"]): row for row in items(mesh, "get", "workloads", "--node", "node1")}
    server = rows["shop", "server"]
    assert server["identity"] == mesh.server.identity and server["protocol"] == "HBONE" and server["node"] == "node2"
    assert set(server["addresses"]) == set(mesh.server.addresses)
    assert rows["legacy", "plain"]["protocol"] == "TCP"


def test_an_open_connection_is_told_by_both_nodes(mesh):
    session = mesh.client.spawn_tool("session", mesh.server.ipv4, ECHO)
    session.wait_output('"open"')

    def rows():
        return [row for row in items(mesh, "get", "connections") if row["path"] == "hbone"]

    wait_for(lambda: len(rows()) == 2, 10, lambda: str(rows()))
    for row in rows():
        assert row["source"]["identity"] == mesh.client.identity
        assert row["destination"]["identity"] == mesh.server.identity and row["destination"]["port"] == ECHO
        assert row["tls"] == {"version": "TLSv1.3", "cipher": "TLS_AES_128_GCM_SHA256"}
        assert row["bytes_sent"] > 0
    session.stop()
    wait_for(lambda: not rows(), 10, "it is gone when it has ended")


def test_services_and_policies_are_told_with_their_origin(mesh):
    ports = [{"name": "main", "port": 80, "targetPort": ECHO}]
    web = manifests.service("web", "shop", ports, ["10.96.0.77"], {"app": "web"})
    slices = manifests.endpoint_slice("web", "shop", [mesh.server.object], [{"name": "main", "port": ECHO}])
    strict = manifests.peer_authentication("default", "shop", "STRICT")
    allow = manifests.authorization_policy("some", "shop", "ALLOW",
                                           [manifests.from_principal(mesh.client.principal)], {"app": "web"})
    with mesh.objects(web, slices, strict, allow):
        service, = [row for row in items(mesh, "get", "services", "--node", "node2") if row["name"] == "web"]
        assert service["addresses"] == ["10.96.0.77"] and service["endpoints"] == 1
        policies = {row["kind"]: row for row in items(mesh, "get", "policies", "--node", "node2")}
        assert policies["AuthorizationPolicy"]["name"] == "some" and policies["PeerAuthentication"]["namespace"] == "shop"


def test_certificates_and_listeners_are_told(mesh):
    certificates = items(mesh, "get", "certs", "--node", "node2")
    assert {row["identity"] for row in certificates} == {mesh.server.identity, mesh.other.identity}
    assert all(0 < row["expires_in_s"] <= 86400 for row in certificates)
    listeners = items(mesh, "get", "listeners", "--node", "node1")
    assert {(row["workload"], row["kind"]) for row in listeners} == {
        (pod.name, kind) for pod in (mesh.client, mesh.neighbour) for kind in ("outbound", "inbound", "hbone")}


def test_a_rejected_object_stands_in_the_status(mesh):
    broken = manifests.authorization_policy("broken", "shop", "REFUSE", [{}])
    mesh.lab.apply(broken)

    def rejected():
        return [one for row in items(mesh, "status") for one in row["rejected"] if one["name"] == "broken"]

    wait_for(lambda: len(rejected()) == 2, 10, lambda: str(items(mesh, "status")))
    assert rejected()[0]["field"] == "spec.action"
    mesh.lab.delete(broken)
    wait_for(lambda: not rejected(), 10, "it is forgotten with its file")


def test_a_log_level_is_set_and_read(mesh):
    meshctl(mesh, "log", "set", "proxy", "debug")
    assert {row["levels"]["proxy"] for row in items(mesh, "log", "get")} == {"debug"}
    meshctl(mesh, "log", "set", "proxy", "info")


@pytest.mark.parametrize("words,code", [
    (("get", "gizmos"), 2), (("frobnicate",), 2), (("status", "--node", "nowhere"), 4),
    (("status", "--admin", "unix:/nowhere"), 4), (("log", "set", "proxy", "loud"), 2),
])
def test_what_cannot_work_is_said_on_stderr_with_its_exit_code(mesh, words, code):
    done = meshctl(mesh, *words, check=False)
    assert done.returncode == code and done.stderr.strip() and not done.stdout


def test_version_and_completion_need_no_node(mesh):
    assert meshctl(mesh, "version", "--client").stdout.startswith("meshctl ")
    for shell in ("bash", "zsh", "fish"):
        assert "meshctl" in meshctl(mesh, "completion", shell).stdout
