"""The Helm chart, as rendered: what it refuses, what it asks for, and that its parts agree with the programs."""

import json
import os
import re
import subprocess
import sys

import pytest
import yaml
from charts import CHART, PROFILES, ROOT

BUILD = os.environ.get("NODEMESH_BUILD_DIR") or f"{ROOT}/build/release"
EVERYTHING = ("-f", f"{CHART}/profiles/monitoring.yaml", "-f", f"{CHART}/profiles/strict.yaml",
              "--set", "resourceQuota.enabled=true,logFormat=json,agent.warden.failOpen=true,agent.proxy.workers=2,"
              "ca.serverName=ca,agent.warden.allowHybridCgroups=true,unknownPeer=plaintext,"
              "clusterCIDRs={10.8.0.0/14,fd00:8::/56},interop.istio=true")


def pods(objects):
    """{name: pod specification} of what starts containers."""
    found = {thing["metadata"]["name"]: thing["spec"]["template"]["spec"] for thing in objects
             if thing["kind"] in ("DaemonSet", "Deployment")}
    found.update({thing["metadata"]["name"]: thing["spec"] for thing in objects if thing["kind"] == "Pod"})
    return found


def containers(objects):
    return {one["name"]: one for pod in pods(objects).values() for one in pod["containers"]}


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_passes_helms_lint(helm, profile):
    chosen = ["-f", f"{CHART}/profiles/{profile}"] if profile else []
    done = helm.run("lint", "--strict", CHART, *chosen, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("profile", PROFILES)
def test_a_second_render_is_the_same_and_names_every_object_once(helm, profile):
    text = helm.text(*EVERYTHING, profile=profile)
    assert text == helm.text(*EVERYTHING, profile=profile)
    objects = [thing for thing in yaml.safe_load_all(text) if thing]
    names = [(thing["kind"], thing["metadata"].get("namespace"), thing["metadata"]["name"]) for thing in objects]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("setting, said", [
    ("agent.warden.failopen=true", "failopen"), ("agents.x=1", "agents"), ("controller.replicas=many", "replicas"),
    ("agent.proxy.certificateLifetime=1 day", "certificateLifetime"), ("image.pullPolicy=Sometimes", "pullPolicy"),
    ("image.repository=example.com/nodemesh:1", "repository"), ("agent.proxy.extraArgs={workers}", "extraArgs"),
    ("clusterCIDRs={10.8.0.0}", "clusterCIDRs"), ("unknownPeer=refuse", "unknownPeer")])
def test_a_value_that_does_not_exist_or_has_the_wrong_type_is_refused_by_name(helm, setting, said):
    done = helm.run("template", CHART, "--kube-version", "1.34", "--set", setting, check=False)
    assert done.returncode != 0 and said in done.stderr


def test_the_controller_can_be_left_out_only_for_another_authority(helm):
    done = helm.run("template", CHART, "--kube-version", "1.34", "--set", "controller.enabled=false", check=False)
    assert done.returncode != 0 and "ca.address" in done.stderr
    objects = helm.objects("--set", "controller.enabled=false,ca.address=istiod.istio-system.svc:15012")
    assert not [thing for thing in objects if "controller" in thing["metadata"]["name"]]
    assert "--ca-address=istiod.istio-system.svc:15012" in containers(objects)["proxy"]["args"]


def test_another_authority_is_one_value_and_leaves_the_controller_no_secret_and_no_port(helm):
    objects = helm.objects("--set", "ca.address=istiod.istio-system.svc:15012,networkPolicy.enabled=true")
    proxy, controller = containers(objects)["proxy"], containers(objects)["controller"]
    assert {"--ca-address=istiod.istio-system.svc:15012", "--ca-cluster-id=Kubernetes"} <= set(proxy["args"])
    root, = (volume["configMap"] for volume in pods(objects)["nodemesh-agent"]["volumes"] if volume["name"] == "ca-root")
    assert root == {"name": "istio-ca-root-cert"}
    assert "--without-authority" in controller["args"] and [port["name"] for port in controller["ports"]] == ["admin"]
    assert not [line for line in rights(objects)["nodemesh-controller"] if re.search("secrets|root-cert|tokenreviews", line)]
    assert "15012" not in yaml.safe_dump([thing for thing in objects if thing["kind"] in ("Service", "NetworkPolicy")])
    named = helm.objects("--set", "ca.address=csr:443,ca.clusterId=east,ca.rootConfigMap=roots")
    root, = (volume["configMap"] for volume in pods(named)["nodemesh-agent"]["volumes"] if volume["name"] == "ca-root")
    assert "--ca-cluster-id=east" in containers(named)["proxy"]["args"] and root == {"name": "roots"}


def rights(objects):
    """{service account: every rule that is bound to it}, with where it holds."""
    roles = {(thing["kind"], thing["metadata"]["name"]): thing.get("rules") or [] for thing in objects
             if thing["kind"] in ("Role", "ClusterRole")}
    found = {}
    for thing in objects:
        if thing["kind"] not in ("RoleBinding", "ClusterRoleBinding"):
            continue
        where = "cluster" if thing["kind"] == "ClusterRoleBinding" else f"namespace {thing['metadata']['namespace']}"
        for subject in thing["subjects"]:
            assert subject["kind"] == "ServiceAccount"
            for rule in roles[(thing["roleRef"]["kind"], thing["roleRef"]["name"])]:
                names = f" named {', '.join(rule['resourceNames'])}" if "resourceNames" in rule else ""
                for resource in rule["resources"]:
                    for group in rule["apiGroups"]:
                        found.setdefault(subject["name"], set()).add(
                            f"{where}: {resource}{'.' * bool(group)}{group}{names}: {', '.join(rule['verbs'])}")
    return {name: sorted(lines) for name, lines in sorted(found.items())}


@pytest.mark.parametrize("profile", PROFILES)
def test_the_rights_of_each_component_are_those_in_the_committed_list(helm, profile):
    with open(f"{os.path.dirname(__file__)}/rights.yaml", encoding="utf-8") as listed:
        assert rights(helm.objects(*EVERYTHING, profile=profile)) == yaml.safe_load(listed)


def test_agents_have_no_right_to_secrets_tokens_or_exec_and_nobody_has_a_wildcard(helm):
    found = rights(helm.objects(*EVERYTHING))
    assert not [line for line in found["nodemesh-agent"] if re.search(r": (secrets|pods/|serviceaccounts/)", line)]
    assert "*" not in json.dumps(found)


def test_agents_may_read_every_kind_that_they_know_and_no_other(helm):
    with open(f"{ROOT}/agent/translate/kinds.cc", encoding="utf-8") as source:
        known = {(group, name) for group, name in re.findall(r'^ +\{"([a-z0-9.]*)", "([A-Za-z]+)",', source.read(), re.MULTILINE)}
    role, = (thing for thing in helm.objects() if (thing["kind"], thing["metadata"]["name"]) == ("ClusterRole", "nodemesh-agent"))
    read = {(group, resource) for rule in role["rules"] for group in rule["apiGroups"] for resource in rule["resources"]
            if {"list", "watch"} <= set(rule["verbs"])}
    plural = {(group, re.sub("y$", "ie", name.lower()) + ("es" if name.endswith("s") else "s")) for group, name in known}
    assert read - {("apiextensions.k8s.io", "customresourcedefinitions")} == plural and len(known) > 8


@pytest.mark.parametrize("profile", PROFILES)
def test_only_the_warden_has_capabilities_and_nothing_is_privileged_or_in_the_nodes_network(helm, profile):
    objects = helm.objects(*EVERYTHING, profile=profile)
    for name, pod in pods(objects).items():
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys(), name
        for one in pod["containers"]:
            secure = one["securityContext"]
            assert "privileged" not in secure and secure["allowPrivilegeEscalation"] is False
            assert secure["readOnlyRootFilesystem"] is True and secure["capabilities"]["drop"] == ["ALL"]
            assert secure["seccompProfile"] == {"type": "RuntimeDefault"}
            assert not [port for port in one.get("ports", []) if "hostPort" in port]
            if one["name"] != "warden":
                assert secure["runAsNonRoot"] and secure["runAsUser"] == 65532 and "add" not in secure["capabilities"]
                assert "appArmorProfile" not in secure
    warden = containers(objects)["warden"]
    assert warden["securityContext"]["capabilities"]["add"] == ["BPF", "NET_ADMIN", "PERFMON", "SYS_ADMIN", "SYS_PTRACE"]


def test_the_nodes_files_are_mounted_into_the_warden_alone_and_its_procfs_read_only(helm):
    pod = pods(helm.objects())["nodemesh-agent"]
    host = {volume["name"]: volume["hostPath"]["path"] for volume in pod["volumes"] if "hostPath" in volume}
    mounts = {one["name"]: {mount["name"]: mount.get("readOnly", False) for mount in one["volumeMounts"]}
              for one in pod["containers"]}
    assert not host.keys() & mounts["proxy"].keys()
    assert {host[name]: read_only for name, read_only in mounts["warden"].items() if name in host} == {
        "/proc": True, "/proc/sys/net": False, "/sys/fs/cgroup": False, "/sys/fs/bpf": False}


def test_agents_run_on_every_node_and_are_the_last_to_go(helm):
    daemon, = (thing for thing in helm.objects() if thing["kind"] == "DaemonSet")
    pod = daemon["spec"]["template"]["spec"]
    assert pod["tolerations"] == [{"operator": "Exists"}] and pod["priorityClassName"] == "system-node-critical"
    assert pod["terminationGracePeriodSeconds"] == 86400
    assert daemon["spec"]["updateStrategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    source, = next(volume for volume in pod["volumes"] if volume["name"] == "ca-token")["projected"]["sources"]
    assert source["serviceAccountToken"]["audience"] == "istio-ca"


def test_the_proxy_is_told_where_pods_are_and_what_becomes_of_unknown_ones(helm):
    def told(*more):
        return [word for word in containers(helm.objects(*more))["proxy"]["args"] if word.startswith(("--cluster", "--unkn"))]

    assert told() == ["--unknown-peer=hold"]
    assert told(*EVERYTHING) == ["--cluster-cidr=10.8.0.0/14", "--cluster-cidr=fd00:8::/56", "--unknown-peer=plaintext"]


def test_the_admission_policy_knows_the_writers_by_the_releases_namespace(helm):
    text = json.dumps([thing for thing in helm.objects(namespace="mesh-of-mine")
                       if thing["kind"] == "ValidatingAdmissionPolicy"])
    assert "system:serviceaccount:mesh-of-mine:nodemesh-agent" in text
    assert "system:serviceaccount:mesh-of-mine:nodemesh-controller" in text and "nodemesh-system" not in text


@pytest.mark.parametrize("more", [(), EVERYTHING])
def test_every_flag_that_the_chart_gives_is_one_of_its_programs(helm, more):
    seen = 0
    for one in containers(helm.objects(*more)).values():
        program = one["command"][0].rsplit("/", 1)[1]
        folder = {"nodemesh-controller": "controller", "meshctl": "ctl"}.get(program, "agent/app")
        words = ["ready"] if program == "meshctl" else []
        done = subprocess.run([f"{BUILD}/{folder}/{program}", *words, "--help"], capture_output=True, text=True, check=True)
        known = set(re.findall(r"--[a-z0-9-]+", done.stdout))
        given = {word.split("=")[0] for word in one["args"] if word.startswith("--")}
        assert given <= known, f"{program} has no {given - known}"
        seen += len(given)
    assert seen > 20


@pytest.mark.parametrize("more", [(), ("--set", "ca.address=istiod.istio-system.svc:15012"), EVERYTHING])
def test_the_notes_name_the_next_three_commands_on_what_is_installed(helm, more, tmp_path):
    said = helm.notes(tmp_path / "chart", *more, namespace="mesh-of-mine")
    things = [thing for thing in yaml.safe_load_all(helm.text(*more, namespace="mesh-of-mine")) if thing]
    agents, = (thing["metadata"]["name"] for thing in things if thing["kind"] == "DaemonSet")
    assert re.findall(r"^  (\S.*)$", said, re.MULTILINE) == [
        f"kubectl rollout status daemonset/{agents} -n mesh-of-mine",
        "kubectl label namespace default istio.io/dataplane-mode=ambient", "helm test mesh -n mesh-of-mine"]
    assert any(thing["metadata"].get("annotations", {}).get("helm.sh/hook") == "test" for thing in things)
    for words in re.findall(r"`meshctl ([^`]+)`", said):
        done = subprocess.run([f"{BUILD}/ctl/meshctl", *words.split(), "--help"], capture_output=True, text=True, check=True)
        assert f"Usage: meshctl {words} " in done.stdout


def test_alerts_and_dashboard_ask_for_metrics_that_the_programs_have(helm):
    rule, = (thing for thing in helm.objects(*EVERYTHING) if thing["kind"] == "PrometheusRule")
    board, = (thing for thing in helm.objects(*EVERYTHING) if thing["metadata"]["name"] == "nodemesh-dashboard")
    asked = [one["expr"] for group in rule["spec"]["groups"] for one in group["rules"]]
    asked += [target["expr"] for panel in json.loads(board["data"]["nodemesh.json"])["panels"] for target in panel["targets"]]
    names = {name for expression in asked for name in re.findall(r"\b(?:nodemesh|istio|process)_[a-z_]+", expression)}
    assert len(names) > 12
    sources = ""
    for folder in ("agent/telemetry", "agent/admin", "agent/app", "controller"):
        for name in os.listdir(f"{ROOT}/{folder}"):
            if name.endswith(".cc"):
                with open(f"{ROOT}/{folder}/{name}", encoding="utf-8") as source:
                    sources += source.read()
    assert not [name for name in names if name.removesuffix("_bucket") not in sources]


def promtool(*words):
    done = subprocess.run(["promtool", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_takes_every_alert_and_every_expression_of_the_dashboard(helm, tmp_path):
    objects = helm.objects(profile="monitoring.yaml")
    rule, = (thing for thing in objects if thing["kind"] == "PrometheusRule")
    assert rule["apiVersion"] == "monitoring.coreos.com/v1" and rule["metadata"]["namespace"] == "nodemesh-system"
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(rule["spec"]), encoding="utf-8")
    alerts = rule["spec"]["groups"][0]["rules"]
    assert f"{len(alerts)} rules found" in promtool("check", "rules", "--lint=all", "--lint-fatal", str(tmp_path / "alerts.yaml"))
    assert all(one["labels"]["severity"] in ("critical", "warning") and one["annotations"].keys() == {"summary", "action"}
               for one in alerts)
    board, = (thing for thing in objects if thing["metadata"]["name"] == "nodemesh-dashboard")
    panels = json.loads(board["data"]["nodemesh.json"])["panels"]
    asked = [re.sub(r"\$__\w+", "5m", target["expr"]) for panel in panels for target in panel["targets"]]
    records = [{"record": f"panel:{number}", "expr": re.sub(r"\$\w+", "x", expression)} for number, expression in enumerate(asked)]
    (tmp_path / "board.yaml").write_text(yaml.safe_dump({"groups": [{"name": "board", "rules": records}]}), encoding="utf-8")
    assert f"{len(asked)} rules found" in promtool("check", "rules", str(tmp_path / "board.yaml"))


ALARMS = [  # alert, series, of how long, labels of what fires
    ("NodemeshCertificateNotRenewed", 'nodemesh_certificate_expiry_seconds{node="n1", identity="web"}', "3600x30", 15,
     {"severity": "critical", "node": "n1", "identity": "web"}),
    ("NodemeshAuthoritySecretsBad", 'nodemesh_ca_secrets_good{pod="c1"}', "0x30", 6, {"severity": "critical", "pod": "c1"}),
    ("NodemeshNoLeader", 'nodemesh_controller_leader{pod="c1"}', "0x30", 6, {"severity": "warning"}),
    ("NodemeshObjectsRefused", 'nodemesh_config_rejected_objects{node="n1"}', "2x30", 6, {"severity": "warning", "node": "n1"}),
]


@pytest.mark.parametrize(("alert", "series", "values", "minutes", "labels"), ALARMS, ids=[one[0] for one in ALARMS])
def test_an_alert_fires_for_what_it_is_about(helm, tmp_path, alert, series, values, minutes, labels):
    rule, = (thing for thing in helm.objects(profile="monitoring.yaml") if thing["kind"] == "PrometheusRule")
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(rule["spec"]), encoding="utf-8")
    annotations, = (one["annotations"] for one in rule["spec"]["groups"][0]["rules"] if one["alert"] == alert)
    said = {name: re.sub(r"{{ \$labels\.(\w+) }}", lambda match: labels[match[1]], text) for name, text in annotations.items()}
    fired = {"eval_time": f"{minutes}m", "alertname": alert, "exp_alerts": [{"exp_labels": labels, "exp_annotations": said}]}
    early = {"eval_time": "1m", "alertname": alert, "exp_alerts": []}
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({"rule_files": ["alerts.yaml"], "evaluation_interval": "1m", "tests": [
        {"interval": "1m", "input_series": [{"series": series, "values": values}], "alert_rule_test": [early, fired]}]}),
        encoding="utf-8")
    promtool("test", "rules", str(tmp_path / "test.yaml"))


def test_pod_monitors_name_pods_and_ports_that_there_are(helm):
    objects = helm.objects(profile="monitoring.yaml")
    templates = [thing["spec"]["template"] for thing in objects if thing["kind"] in ("DaemonSet", "Deployment")]
    found = [thing for thing in objects if thing["kind"] == "PodMonitor"]
    assert len(found) == len(templates) == 2
    for monitor in found:
        assert monitor["apiVersion"] == "monitoring.coreos.com/v1" and monitor["metadata"]["namespace"] == "nodemesh-system"
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        assert wanted
        template, = (one for one in templates if wanted <= one["metadata"]["labels"].items())
        endpoint, = monitor["spec"]["podMetricsEndpoints"]
        port, = (port for one in template["spec"]["containers"] for port in one.get("ports", []) if port["name"] == endpoint["port"])
        assert port["containerPort"] in (15020, 15014) and endpoint["path"] == "/metrics"
        assert re.fullmatch(r"\d+(s|m)", endpoint["interval"])
        assert {"sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "node"} in endpoint["relabelings"]


def test_the_chart_has_the_projects_version(helm):
    with open(f"{CHART}/Chart.yaml", encoding="utf-8") as source:
        chart = yaml.safe_load(source)
    with open(f"{ROOT}/CMakeLists.txt", encoding="utf-8") as source:
        version = re.search(r"^project\(nodemesh VERSION (\S+)", source.read(), re.MULTILINE)[1]
    assert chart["version"] == chart["appVersion"] == version
    assert containers(helm.objects())["proxy"]["image"] == f"localhost/nodemesh:{version}"
    digest = "sha256:" + "0" * 64
    assert containers(helm.objects("--set", f"image.digest={digest}"))["proxy"]["image"] == f"localhost/nodemesh@{digest}"


def test_the_manifests_in_meshctl_are_byte_for_byte_what_helm_renders_of_each_profile(helm):
    sys.path.append(f"{ROOT}/packaging")
    import rendered

    found = rendered.render()
    assert set(found) == {profile or "default.yaml" for profile in PROFILES}
    assert rendered.committed() == found, "run scripts/manifests"
    with open(f"{BUILD}/ctl/meshctl", "rb") as program:
        inside = program.read()
    assert all(text.encode() in inside for text in found.values()), "build meshctl anew"


def test_every_value_is_documented_and_the_reference_is_up_to_date():
    sys.path.append(f"{ROOT}/packaging")
    import values

    assert values.check() == []


def test_the_chart_as_one_file_has_the_crds_that_agents_read_and_is_the_same_when_written_again(helm, tmp_path):
    for name in ("one", "two"):
        subprocess.run([f"{ROOT}/scripts/chart", "--output", f"{tmp_path}/{name}.tgz"], check=True, stdout=subprocess.DEVNULL)
    assert (tmp_path / "one.tgz").read_bytes() == (tmp_path / "two.tgz").read_bytes()
    crds = [thing for thing in yaml.safe_load_all(helm.run("show", "crds", f"{tmp_path}/one.tgz").stdout) if thing]
    with open(f"{ROOT}/agent/translate/kinds.cc", encoding="utf-8") as source:
        known = set(re.findall(r'^ +\{"([a-z.]*istio\.io)", "([A-Za-z]+)",', source.read(), re.MULTILINE))
    assert {(crd["spec"]["group"], crd["spec"]["names"]["kind"]) for crd in crds} == known
    folder = helm.run("template", "mesh", CHART, "--kube-version", "1.34").stdout
    assert helm.run("template", "mesh", f"{tmp_path}/one.tgz", "--kube-version", "1.34").stdout == folder
