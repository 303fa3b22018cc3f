"""The commands of the control plane, which runs on the machine beside the nodes.

Leader election and health ports are off: there is one of each, and the API server's readiness is what callers wait for.
"""

import json
import os

ETCD = "http://127.0.0.1:2379"
ETCD_PEER = "http://127.0.0.1:2380"


def etcd(plan):
    folder = f"{plan.state}/etcd"
    os.makedirs(folder, mode=0o700, exist_ok=True)
    return ["etcd", "--name=etcd", f"--data-dir={folder}", f"--listen-client-urls={ETCD}",
            f"--advertise-client-urls={ETCD}", f"--listen-peer-urls={ETCD_PEER}",
            f"--initial-advertise-peer-urls={ETCD_PEER}", f"--initial-cluster=etcd={ETCD_PEER}",
            "--unsafe-no-fsync"]  # the data is on a tmpfs anyhow


def audit(plan):
    """Flags that make the API server write down what one user asks; none where none is named."""
    if not plan.audit:
        return []
    policy = f"{plan.state}/audit.json"
    with open(policy, "w", encoding="utf-8") as out:
        json.dump({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
                   "rules": [{"level": "Metadata", "users": [plan.audit]}, {"level": "None"}]}, out)
    return [f"--audit-policy-file={policy}", f"--audit-log-path={plan.state}/log/audit.log"]


def apiserver(plan):
    pki = f"{plan.state}/pki"
    return ["kube-apiserver", f"--etcd-servers={ETCD}", f"--bind-address={plan.machine(plan.families[0])}",
            f"--advertise-address={plan.machine(plan.families[0])}", "--secure-port=6443",
            f"--service-cluster-ip-range={','.join(plan.services(family) for family in plan.families)}",
            f"--tls-cert-file={pki}/apiserver.crt", f"--tls-private-key-file={pki}/apiserver.key",
            f"--client-ca-file={pki}/ca.crt", f"--kubelet-client-certificate={pki}/kubelet-client.crt",
            f"--kubelet-client-key={pki}/kubelet-client.key", f"--kubelet-certificate-authority={pki}/ca.crt",
            "--kubelet-preferred-address-types=InternalIP",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={pki}/sa.pub", f"--service-account-signing-key-file={pki}/sa.key",
            "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged",
            "--profiling=false", *audit(plan)]


def controller_manager(plan):
    pki = f"{plan.state}/pki"
    return ["kube-controller-manager", f"--kubeconfig={plan.kubeconfig('kube-controller-manager')}",
            "--leader-elect=false", "--secure-port=0", f"--root-ca-file={pki}/ca.crt",
            f"--service-account-private-key-file={pki}/sa.key", f"--cluster-signing-cert-file={pki}/ca.crt",
            f"--cluster-signing-key-file={pki}/ca.key", "--use-service-account-credentials",
            # Its default is a folder below /usr/libexec, which it would make on the machine.
            f"--flex-volume-plugin-dir={plan.state}/flex",
            "--node-monitor-grace-period=20s"]  # half of the default: tests wait for it


def scheduler(plan):
    return ["kube-scheduler", f"--kubeconfig={plan.kubeconfig('kube-scheduler')}", "--leader-elect=false",
            "--secure-port=0"]
