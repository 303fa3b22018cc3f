"""Gives every Service of type LoadBalancer an address of each of its families, as a cloud would; kube-proxy serves it.

python3 -m minicluster.balancer CLUSTER. Addresses are not used again.
"""

import ipaddress
import itertools
import json
import sys
import time

from minicluster.api import Api, ApiError
from minicluster.plan import load


def wants_address(service):
    return (service["spec"].get("type") == "LoadBalancer" and not service["metadata"].get("deletionTimestamp")
            and not service.get("status", {}).get("loadBalancer", {}).get("ingress"))


def assign(api, service, addresses):
    meta = service["metadata"]
    given = [{"ip": str(next(addresses[family]))} for family in service["spec"]["ipFamilies"]]
    path = f"/api/v1/namespaces/{meta['namespace']}/services/{meta['name']}/status"
    try:
        api.request("PATCH", path, {"status": {"loadBalancer": {"ingress": given}}}, "application/merge-patch+json")
    except ApiError as error:
        if error.status != 404:  # gone meanwhile
            raise


def watch(plan, api, addresses):
    """One watch to its end; the server ends it now and then."""
    for service in api.get("/api/v1/services")["items"]:
        if wants_address(service):
            assign(api, service, addresses)
    for line in Api(plan).stream("/api/v1/services?watch=true"):
        event = json.loads(line)
        if event["type"] in ("ADDED", "MODIFIED") and wants_address(event["object"]):
            assign(api, event["object"], addresses)


def main(name):
    plan = load(name)
    ranges = {f"IPv{family}": ipaddress.ip_network(plan.balancers(family)) for family in (4, 6)}
    addresses = {family: itertools.islice(network.hosts(), 0, None) for family, network in ranges.items()}
    api = Api(plan)
    while True:
        try:
            watch(plan, api, addresses)
        except OSError as error:  # the API server restarts, or ended the watch
            print(f"watching Services: {error!r}", flush=True)
            time.sleep(0.5)


if __name__ == "__main__":
    main(sys.argv[1])
