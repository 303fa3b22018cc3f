"""A shop of services in the shape of Istio's bookinfo, built from echo servers: productpage asks details and reviews, all
three versions of which ask ratings. Every call is made on a connection of its own."""

import json

from minicluster import workloads
from minicluster.mesh import ask
from minicluster.plan import bracketed

SPACE = "bookinfo"  # its namespace
# Application and version: its port, whom it asks, how kubelet asks whether it is ready and alive. One named port, `http`,
# is another number in each version of reviews.
BOOKS = {
    ("productpage", "v1"): (8080, ("details", "reviews"), "tcp", "grpc"),
    ("details", "v1"): (8080, (), "http", "exec"),
    ("reviews", "v1"): (8081, ("ratings",), "grpc", "http"),
    ("reviews", "v2"): (8082, ("ratings",), "exec", "tcp"),
    ("reviews", "v3"): (8083, ("ratings",), "http", "grpc"),
    ("ratings", "v1"): (8084, (), "tcp", "http"),
}


def probes(port, ready, alive):
    kinds = {"http": {"httpGet": {"path": "/healthz", "port": "http"}}, "tcp": {"tcpSocket": {"port": "http"}},
             "exec": {"exec": {"command": ["/echo", "ok"]}}, "grpc": {"grpc": {"port": port}}}
    return {"readinessProbe": {**kinds[ready], "periodSeconds": 1},
            "livenessProbe": {**kinds[alive], "periodSeconds": 1, "failureThreshold": 5}}


def book(app, version):
    port, upstreams, ready, alive = BOOKS[app, version]
    args = ["-http", str(port), "-upstreams", ",".join(f"http://{name}:9080" for name in upstreams)]
    spec = workloads.pod_spec(
        workloads.container(args=args, ports=[{"containerPort": port, "name": "http"}], **probes(port, ready, alive)),
        spread_by=app, serviceAccountName=f"bookinfo-{app}")
    labels = {"app": app, "version": version}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": f"{app}-{version}", "namespace": SPACE},
            "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": spec}}}


def account(name):
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": SPACE}}


def things():
    """Everything of the shop but its namespace."""
    apps = sorted({app for app, _ in BOOKS})
    return [*(account(f"bookinfo-{app}") for app in apps), *(book(*key) for key in BOOKS),
            *(workloads.service(app, SPACE, {"http": (9080, "http")}) for app in apps)]


def on(node, name, *containers, **more):
    """A pod of a node by name, with the service account of its own name."""
    spec = workloads.pod_spec(*(containers or [workloads.echo_container()]), nodeName=node, serviceAccountName=name, **more)
    return [account(name), workloads.pod(name, SPACE, spec)]


class Shop:
    """The shop on a cluster."""

    def __init__(self, cluster):
        self.cluster = cluster

    def ready(self, seconds=120):
        """{name of a pod: it}, once all are ready."""
        def found():
            pods = [pod for pod in self.cluster.pods(namespace=SPACE) if pod.object["metadata"]["labels"].get("app") in
                    {app for app, _ in BOOKS}]
            return {pod.name: pod for pod in pods} if len(pods) == len(BOOKS) and all(
                pod.ready and not pod.object["metadata"].get("deletionTimestamp") for pod in pods) else None
        return self.cluster.wait(found, seconds, lambda: "the shop is ready:\n" + self.cluster.kubectl(
            "get", "pods", "-n", SPACE, "-o", "wide"))

    def one(self, app):
        """The ready pod of an application, or its first."""
        return self.cluster.ready_pods(f"app={app}", SPACE)[0]

    def url(self, name, family, port=9080):
        vips = self.cluster.api.get(f"/api/v1/namespaces/{SPACE}/services/{name}")["spec"]["clusterIPs"]
        return f"http://{bracketed(next(vip for vip in vips if (':' in vip) == (family == 'ipv6')))}:{port}"

    def visit(self, client, family, path="/index"):
        """All calls of one visit: (the client's pod name, what the server says); None where one of them failed."""
        found = ask(client, self.url("productpage", family) + path)
        return list(_calls(found, client.name)) if found and "error" not in json.dumps(found) else None

    def open_for_business(self, client):
        """Waits until visits succeed by both families, whichever versions they meet."""
        self.cluster.wait(lambda: all(self.visit(client, family) for family in ("ipv4", "ipv6") for _ in range(4)), 60,
                          "visits succeed")


def _calls(answer, client):
    yield client, answer
    for below in answer.get("upstreams", ()):
        yield from _calls(below, answer["pod"])
