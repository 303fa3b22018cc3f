"""Ordinary objects for tests, as dicts: echo servers, a pod to run commands in, their Services."""


def _meta(name, namespace, labels=None):
    return {"name": name, "namespace": namespace, "labels": {"app": name, **(labels or {})}}


def namespace(name, labels=None):
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels or {}}}


def container(image="echo", **more):
    """A container of one of the cluster's own images; POD_NAME, NODE_NAME and POD_NAMESPACE say where it is."""
    fields = {"POD_NAME": "metadata.name", "NODE_NAME": "spec.nodeName", "POD_NAMESPACE": "metadata.namespace"}
    return {"name": image, "image": f"localhost/{image}:1", "imagePullPolicy": "Never",
            "env": [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()], **more}


def echo_container(**more):
    """The echo server with a probe of each kind."""
    return container(
        ports=[{"containerPort": 8080, "name": "http"}, {"containerPort": 9000, "name": "tcp"}],
        startupProbe={"exec": {"command": ["/echo", "ok"]}, "periodSeconds": 1},
        readinessProbe={"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 1},
        livenessProbe={"grpc": {"port": 8080}, "periodSeconds": 2, "failureThreshold": 5}, **more)


def pod_spec(*containers, spread_by=None, **more):
    """Pods spread over the nodes by their app label; they end without the usual grace of 30 s."""
    spread = [{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule",
               "nodeTaintsPolicy": "Honor",  # a node that is drained does not count
               "labelSelector": {"matchLabels": {"app": spread_by}}}]
    return {"terminationGracePeriodSeconds": 1, "containers": list(containers),
            **({"topologySpreadConstraints": spread} if spread_by else {}), **more}


def deployment(name, namespace, spec, replicas=1, labels=None):
    meta = _meta(name, namespace, labels)
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": {
        "replicas": replicas, "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": meta["labels"]}, "spec": spec}}}


def pod(name, namespace, spec, labels=None):
    return {"apiVersion": "v1", "kind": "Pod", "metadata": _meta(name, namespace, labels), "spec": spec}


def service(name, namespace, ports, kind="ClusterIP", **more):
    """ports is {name: (port, target port)}."""
    return {"apiVersion": "v1", "kind": "Service", "metadata": _meta(name, namespace), "spec": {
        "type": kind, "selector": {"app": name}, "ipFamilyPolicy": "PreferDualStack",
        "ports": [{"name": key, "port": port, "targetPort": target} for key, (port, target) in ports.items()], **more}}


def echo(name, namespace, replicas=3, kind="ClusterIP", labels=None):
    """An echo Deployment, one pod on each node while there are nodes, and its Service: HTTP on 80, TCP on 9000."""
    spec = pod_spec(echo_container(), spread_by=name)
    return [deployment(name, namespace, spec, replicas, labels),
            service(name, namespace, {"http": (80, "http"), "tcp": (9000, "tcp")}, kind)]


def tools(name, namespace, node=None, labels=None):
    """A pod of ordinary programs (curl, nginx, python3, ip, a shell), to run commands in."""
    return pod(name, namespace, pod_spec(container("tools"), **({"nodeName": node} if node else {})), labels)


def host_mounts(**paths):
    """Volumes and volume mounts of folders of the node: name=(path on the node, path in the container, propagation)."""
    volumes = [{"name": name, "hostPath": {"path": there}} for name, (there, _, _) in paths.items()]
    mounts = [{"name": name, "mountPath": here, **({"mountPropagation": how} if how else {})}
              for name, (_, here, how) in paths.items()]
    return {"volumes": volumes}, {"volumeMounts": mounts}
