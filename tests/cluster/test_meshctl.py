"""meshctl on the cluster: as a user with no more rights than docs/meshctl.md lists, and as an administrator."""

import base64
import io
import json
import os
import re
import tarfile

import pytest
import yaml
from minicluster import workloads
from minicluster.binaries import ROOT
from minicluster.mesh import BUILD, LABEL, NAMESPACE, Mesh

MESHCTL = f"{BUILD}/ctl/meshctl"
NODES = ["node1", "node2", "node3"]


class Meshctl:
    """meshctl with a kubeconfig."""

    def __init__(self, cluster, kubeconfig):
        self.cluster, self.kubeconfig = cluster, kubeconfig

    def __call__(self, *words, exit_code=0, timeout=150):
        done = self.cluster.run([MESHCTL, *words], env={"KUBECONFIG": self.kubeconfig}, check=False, timeout=timeout)
        assert done.returncode == exit_code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *words):
        return json.loads(self(*words, "-o", "json").stdout)


@pytest.fixture(scope="module")
def mesh(cluster, chart, image):
    """The installed mesh, and an echo pod on each node in a namespace that is not in it."""
    cluster.apply([workloads.namespace("mall"), *workloads.echo("echo", "mall")])
    with Mesh.installed(cluster, chart, image) as made:
        yield made
    cluster.delete("namespace", "mall")


@pytest.fixture(scope="module")
def admin(cluster, mesh):
    mesh.agents()
    return Meshctl(cluster, cluster.plan.kubeconfig())


def rights():
    """The YAML of docs/meshctl.md."""
    with open(f"{ROOT}/docs/meshctl.md", encoding="utf-8") as page:
        return list(yaml.safe_load_all(re.search(r"```yaml\n(.*?)```", page.read(), re.S).group(1)))


@pytest.fixture(scope="module")
def users(cluster, mesh, tmp_path_factory):
    """meshctl for three service accounts: with the documented Role, with the ClusterRole too, and with nothing."""
    role, cluster_role = rights()
    names = ["observer", "operator", "nobody"]
    subjects = {name: {"kind": "ServiceAccount", "name": name, "namespace": "default"} for name in names}

    def binding(kind, name, who, **metadata):
        ref = "ClusterRole" if kind == "ClusterRoleBinding" else "Role"
        return {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": {"name": name, **metadata},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": ref, "name": name},
                "subjects": [subjects[one] for one in who]}

    things = [role, cluster_role, binding("RoleBinding", "meshctl", ["observer", "operator"], namespace=NAMESPACE),
              binding("ClusterRoleBinding", "meshctl-enroll", ["operator"])]
    cluster.apply([*({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": "default"}}
                     for name in names), *things])
    with open(cluster.plan.kubeconfig(), encoding="utf-8") as source:
        config = yaml.safe_load(source)
    made = {}
    for name in names:
        token = cluster.kubectl("create", "token", name).strip()
        path = tmp_path_factory.mktemp(name) / "config"
        path.write_text(yaml.safe_dump({**config, "users": [
            {"name": user["name"], "user": {"token": token}} for user in config["users"]]}), encoding="utf-8")
        made[name] = Meshctl(cluster, path)
    yield made
    cluster.delete("clusterrole,clusterrolebinding", "meshctl-enroll")
    cluster.delete("serviceaccount", *names)


def test_a_user_with_the_documented_rights_asks_every_node_through_the_api_server(cluster, mesh, admin, users):
    observer = users["observer"]
    cluster.wait(lambda: [row["node"] for row in observer.json("status")["items"]] == NODES, 30, "all nodes answer")
    assert [row["ready"] for row in observer.json("status")["items"]] == [True] * 3
    rows = observer.json("get", "workloads")["items"]
    assert {row["reported_by"] for row in rows} == set(NODES)
    local = {(row["reported_by"], row["name"]) for row in rows if row["local"] and row["namespace"] == "mall"}
    assert local == {(pod.node_name, pod.name) for pod in cluster.pods("app=echo", "mall")}
    assert [row["node"] for row in observer.json("status", "--node", "node2")["items"]] == ["node2"]
    assert "no agent" in observer("status", "--node", "node9", exit_code=4).stderr
    observer("log", "set", "tls", "debug", "--node", "node3", "--for", "1m")
    levels = {row["node"]: row["levels"]["tls"] for row in observer.json("log", "get")["items"]}
    assert levels == {"node1": "info", "node2": "info", "node3": "debug"}
    version = observer.json("version")
    assert [row["node"] for row in version["items"]] == NODES and len(version["controllers"]) == 2
    assert not version["skew"]


def test_kubectl_runs_it_as_its_plugin_mesh(cluster, admin, tmp_path):
    (tmp_path / "kubectl-mesh").symlink_to(os.path.abspath(MESHCTL))

    def kubectl(*words):
        return cluster.run(["kubectl", "mesh", *words], env={"PATH": f"{tmp_path}:{cluster.environment()['PATH']}"}, check=False)

    done = kubectl("status")
    assert done.returncode == 0 and [line.split()[0] for line in done.stdout.splitlines()[1:4]] == NODES, done
    wrong = kubectl("status", "--no-such-flag")
    assert wrong.returncode == 2 and "`kubectl mesh status" in wrong.stderr


def test_a_client_certificate_reaches_the_agents_as_a_token_does(cluster, admin):
    with open(cluster.plan.kubeconfig(), encoding="utf-8") as source:
        user = yaml.safe_load(source)["users"][0]["user"]
    assert "token" not in user and any(key.startswith("client-certificate") for key in user)
    assert [row["node"] for row in admin.json("status")["items"]] == NODES


def test_without_a_right_the_command_names_it_and_does_not_say_unreachable(users):
    assert "HTTP 403" in users["nobody"]("status", exit_code=1).stderr
    assert "HTTP 403" in users["observer"]("enroll", "namespace", "mall", exit_code=1).stderr


def test_enroll_waits_until_the_pods_are_in_the_mesh_and_unenroll_until_they_are_out(cluster, mesh, users):
    operator = users["operator"]
    pods = {pod.name for pod in cluster.ready_pods("app=echo", "mall", count=3)}

    def captured():
        return {row["workload"] for row in operator.json("get", "listeners")["items"]}

    operator("enroll", "namespace", "mall", "--dry-run")
    assert LABEL not in cluster.api.get("/api/v1/namespaces/mall")["metadata"]["labels"]
    done = operator("enroll", "namespace", "mall", "--wait")
    assert f"{LABEL}: (none) -> ambient" in done.stdout and "3 of 3 pods" in done.stderr
    assert cluster.api.get("/api/v1/namespaces/mall")["metadata"]["labels"][LABEL] == "ambient"
    assert captured() == pods
    assert "nothing to change" in operator("enroll", "ns/mall").stdout
    operator("unenroll", "deployment/echo", "--in", "mall", "--wait")
    after = {pod.name for pod in cluster.ready_pods("app=echo", "mall", count=3)}
    assert after.isdisjoint(pods) and not captured() & after
    operator("enroll", "deployment/echo", "--in", "mall", "--wait")
    assert captured() >= {pod.name for pod in cluster.ready_pods("app=echo", "mall", count=3)}
    operator("unenroll", "namespace", "mall")


def test_a_sysdump_has_everything_but_keys_and_tokens(cluster, mesh, admin, tmp_path):
    secret = cluster.api.get(f"/api/v1/namespaces/{NAMESPACE}/secrets/nodemesh-ca")["data"]
    key, = (base64.b64decode(value).decode() for name, value in secret.items() if "PRIVATE KEY" in
            base64.b64decode(value).decode() and name)
    token = cluster.kubectl("create", "token", "default").strip()
    cluster.apply([workloads.namespace("leaky"),
                   {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "leak", "namespace": NAMESPACE},
                    "data": {"key.pem": key, "config": f"a: {token}", "env": "DB_PASSWORD=opensesame"}}])
    file = tmp_path / "dump.tar.gz"
    admin("sysdump", "-o", file)
    cluster.delete("configmap", "leak", namespace=NAMESPACE)
    cluster.delete("namespace", "leaky")
    assert file.stat().st_mode & 0o077 == 0
    with tarfile.open(file) as archive:
        texts = {member.name.removeprefix("nodemesh-sysdump/"): archive.extractfile(member).read().decode()
                 for member in archive.getmembers()}
    agents = mesh.agents()
    for agent in agents:
        assert json.loads(texts[f"nodes/{agent.node_name}/status.json"])["node"] == agent.node_name
        assert "nodemesh_build_info" in texts[f"nodes/{agent.node_name}/metrics.txt"]
        assert "warden" in texts[f"logs/{agent.name}/warden.log"] and texts[f"logs/{agent.name}/proxy.log"]
    names = [thing["metadata"]["name"] for thing in json.loads(texts["mesh/pods.json"])["items"]]
    assert {agent.name for agent in agents} <= set(names)
    assert json.loads(texts["index.json"])["missing"] == []
    whole = "".join(texts.values())
    assert "leak" in texts["mesh/configmaps.json"] and "[removed]" in texts["mesh/configmaps.json"]
    lines = [line for line in key.splitlines() if line and not line.startswith("-----")]
    for part in (*lines, base64.b64encode(key.encode()).decode()[:60], token, token.split(".")[1], "opensesame", "PRIVATE KEY"):
        assert part not in whole, part[:30]


def test_a_sysdump_without_rights_names_what_is_missing(users, tmp_path):
    file = tmp_path / "dump.tar.gz"
    done = users["observer"]("sysdump", "-o", file, "--strict", exit_code=3)
    assert "cluster/nodes.json is missing" in done.stderr
    with tarfile.open(file) as archive:
        index = json.load(io.TextIOWrapper(archive.extractfile("nodemesh-sysdump/index.json")))
        assert "nodemesh-sysdump/nodes/node1/status.json" in archive.getnames()
    assert any(row["file"] == "cluster/nodes.json" and "403" in row["why"] for row in index["missing"])


def test_while_the_api_server_is_away_every_command_ends_with_exit_code_4(cluster, admin, tmp_path):
    with cluster.without("kube-apiserver"):
        for words in (["status"], ["get", "workloads"], ["check"], ["install"], ["uninstall"],
                      ["enroll", "namespace", "mall"], ["sysdump", "-o", tmp_path / "none.tar.gz"]):
            assert "next: " in admin(*words, exit_code=4).stderr
        assert admin("version").stdout.startswith("meshctl ")
    assert not (tmp_path / "none.tar.gz").exists()
