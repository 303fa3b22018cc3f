"""Kubernetes and Istio objects as plain dicts: pure functions, no lab needed."""

NETNS_ANNOTATION = "nodemesh.dev/netns"
AMBIENT = {"istio.io/dataplane-mode": "ambient"}


def _object(api, kind, name, namespace=None, labels=None, annotations=None, **fields):
    metadata = {"name": name}
    if namespace:
        metadata["namespace"] = namespace
    if labels:
        metadata["labels"] = dict(labels)
    if annotations:
        metadata["annotations"] = dict(annotations)
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **fields}


def key(thing):
    """(kind, namespace, name): what makes an object unique."""
    metadata = thing["metadata"]
    return thing["kind"], metadata.get("namespace", ""), metadata["name"]


def namespace(name, labels=None):
    return _object("v1", "Namespace", name, labels=labels)


def service_account(name, namespace):
    return _object("v1", "ServiceAccount", name, namespace)


def pod(name, namespace, node, uid, addresses, netns, labels=None, service_account="default", ports=(), probes=(),
        annotations=None, host_ip=None, container="app"):
    """ports: numbers, or (name, number); probes: ports that kubelet probes over TCP; netns None: not named."""
    listed = [{"containerPort": p} if isinstance(p, int) else {"name": p[0], "containerPort": p[1]} for p in ports]
    main = {"name": container, "image": "none"}
    if listed:
        main["ports"] = listed
    if probes:
        main["readinessProbe"] = {"tcpSocket": {"port": probes[0]}}
    if len(probes) > 1:
        main["livenessProbe"] = {"tcpSocket": {"port": probes[1]}}
    named = {NETNS_ANNOTATION: netns} if netns else {}
    made = _object("v1", "Pod", name, namespace, labels, {**named, **(annotations or {})},
                   spec={"nodeName": node, "serviceAccountName": service_account, "containers": [main]},
                   status={"phase": "Running", "hostIP": host_ip, "podIP": addresses[0],
                           "podIPs": [{"ip": address} for address in addresses],
                           "conditions": [{"type": "Ready", "status": "True"}]})
    made["metadata"]["uid"] = uid
    return made


def service(name, namespace, ports, cluster_ips=(), selector=None, **spec):
    """ports: dicts as in the API; no cluster_ips makes it headless."""
    ips = list(cluster_ips) or ["None"]
    return _object("v1", "Service", name, namespace,
                   spec={"clusterIP": ips[0], "clusterIPs": ips, "ports": list(ports),
                         **({"selector": selector} if selector else {}), **spec})


def endpoint_slice(service, namespace, pods, ports, family="IPv4", suffix="1", conditions=None):
    """pods: Pod objects (dicts); ports: dicts with name and port."""
    want6 = family == "IPv6"
    endpoints = []
    for one in pods:
        addresses = [ip["ip"] for ip in one["status"]["podIPs"] if (":" in ip["ip"]) == want6]
        endpoints.append({"addresses": addresses, "nodeName": one["spec"]["nodeName"],
                          "conditions": dict(conditions or {"ready": True, "serving": True, "terminating": False}),
                          "targetRef": {"kind": "Pod", "name": one["metadata"]["name"],
                                        "namespace": one["metadata"]["namespace"], "uid": one["metadata"]["uid"]}})
    return _object("discovery.k8s.io/v1", "EndpointSlice", f"{service}-{suffix}-{family.lower()}", namespace,
                   {"kubernetes.io/service-name": service}, addressType=family, endpoints=endpoints, ports=list(ports))


def peer_authentication(name, namespace, mode, selector=None, ports=None):
    spec = {"mtls": {"mode": mode}} if mode else {}
    if selector:
        spec["selector"] = {"matchLabels": dict(selector)}
    if ports:
        spec["portLevelMtls"] = {int(port): {"mode": value} for port, value in ports.items()}
    return _object("security.istio.io/v1", "PeerAuthentication", name, namespace, spec=spec)


def authorization_policy(name, namespace, action="ALLOW", rules=None, selector=None, dry_run=False):
    """rules as in the API; None leaves the field out."""
    spec = {"action": action}
    if selector:
        spec["selector"] = {"matchLabels": dict(selector)}
    if rules is not None:
        spec["rules"] = rules
    return _object("security.istio.io/v1", "AuthorizationPolicy", name, namespace,
                   annotations={"istio.io/dry-run": "true"} if dry_run else None, spec=spec)


def from_principal(*names, ports=None):
    """One rule: these principals, optionally only to these ports."""
    rule = {"from": [{"source": {"principals": list(names)}}]}
    if ports:
        rule["to"] = [{"operation": {"ports": [str(port) for port in ports]}}]
    return rule


def destination_rule(name, namespace, host, simple):
    return _object("networking.istio.io/v1", "DestinationRule", name, namespace,
                   spec={"host": host, "trafficPolicy": {"loadBalancer": {"simple": simple}}})


def mesh_config(text, namespace="istio-system"):
    return _object("v1", "ConfigMap", "istio", namespace, data={"mesh": text})
