"""The real istiod on a cluster, by Istio's own Helm chart and from the Go module that cluster/go/istiod pins.

    with Istiod.installed(cluster, "--set", "trustedZtunnelName=nodemesh-agent") as istiod:
        istiod.stop()
"""

import contextlib

from minicluster import binaries, images

NAMESPACE = "istio-system"
CHART = "manifests/charts/istio-control/istio-discovery"
SMALL = ("autoscaleEnabled=false", "image=localhost/istiod:1", "global.imagePullPolicy=Never", "resources.requests.cpu=10m",
         "resources.requests.memory=128Mi", r"nodeSelector.kubernetes\.io/hostname=node1")


class Istiod:
    """One replica, on node 1."""

    def __init__(self, cluster):
        self.cluster = cluster

    @classmethod
    @contextlib.contextmanager
    def installed(cls, cluster, *values):
        """`values` are Helm's words. Istio's CRDs are not installed."""
        binaries.build(modules=("istiod",))
        images.build(names=("istiod",))
        cluster.node(1).load_image(f"{images.FOLDER}/istiod.tar")
        chart = f"{binaries.source('istiod', 'istio.io/istio')}/{CHART}"
        cluster.helm("install", "istiod", chart, "--namespace", NAMESPACE, "--create-namespace", "--set", ",".join(SMALL), *values)
        try:
            made = cls(cluster)
            made.wait_ready()
            yield made
        finally:
            cluster.helm("uninstall", "istiod", "--namespace", NAMESPACE)
            cluster.wait(lambda: not cluster.pods(namespace=NAMESPACE), 60, "istiod has ended")
            cluster.delete("namespace", NAMESPACE)
            cluster.kubectl("delete", "configmaps", "-A", "-l", "istio.io/config=true")
            cluster.wait(lambda: NAMESPACE not in cluster.kubectl("get", "namespaces", "-o", "name"), 60,
                         f"namespace {NAMESPACE} is gone")

    def wait_ready(self):
        self.cluster.rollout("deployment/istiod", NAMESPACE, seconds=90)

    def root(self):
        """The roots that it publishes, PEM."""
        path = f"/api/v1/namespaces/{NAMESPACE}/configmaps/istio-ca-root-cert"
        return self.cluster.wait(lambda: self.cluster.api.get(path), 30, "istiod's root is published")["data"]["root-cert.pem"]

    def log(self):
        return self.cluster.kubectl("logs", "-n", NAMESPACE, "deployment/istiod")

    def stop(self):
        self.cluster.kubectl("scale", "-n", NAMESPACE, "deployment/istiod", "--replicas=0")
        self.cluster.kubectl("delete", "pods", "-n", NAMESPACE, "-l", "app=istiod", "--grace-period=1", "--ignore-not-found")
        self.cluster.wait(lambda: not self.cluster.pods(namespace=NAMESPACE), 60, "istiod has ended")
