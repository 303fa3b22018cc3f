"""A pod under load for as long as something is done to the mesh: new connections again and again, and some that stay."""

import json

from minicluster import workloads

# Prints its counts as a line of JSON twice a second.
CLIENT = """
import collections, http.client, json, sys, threading, time

counts, errors = collections.Counter(), collections.Counter()

def ask(connection):
    connection.request("GET", "/")
    connection.getresponse().read()

def attempt(kind, what):
    try:
        what()
        counts[kind] += 1
        return True
    except (OSError, http.client.HTTPException) as error:
        counts[kind + "_failed"] += 1
        errors[f"{kind} {error!r}"] += 1
        return False

def fresh(host):
    def once():
        connection = http.client.HTTPConnection(host, 8080, timeout=20)
        try:
            ask(connection)
        finally:
            connection.close()
    while True:
        attempt("new", once)
        time.sleep(0.02)

def kept(host):
    while True:
        connection = http.client.HTTPConnection(host, 8080, timeout=20)
        while attempt("kept", lambda: ask(connection)):
            time.sleep(0.1)
        connection.close()
        time.sleep(0.1)

for host in sys.argv[1:]:
    for what in (fresh, kept, kept):
        threading.Thread(target=what, args=(host,), daemon=True).start()
while True:
    print(json.dumps({**counts, "errors": errors}), flush=True)
    time.sleep(0.5)
"""


class Load:
    """From a pod on `node` to the servers, all named by address."""

    def __init__(self, cluster, namespace, node, servers):
        self.cluster, self.namespace, self.name = cluster, namespace, f"load-{node}"
        container = workloads.container("tools", command=["python3", "-c", CLIENT, *servers])
        cluster.apply(workloads.pod(self.name, namespace, workloads.pod_spec(container, nodeName=node)))
        cluster.wait(lambda: self.counts().get("kept", 0) > 10, 60, f"load from {node}")

    def counts(self):
        lines = self.cluster.kubectl("logs", "-n", self.namespace, self.name, "--tail=1", check=False).split("\n")
        return json.loads(lines[0]) if lines[0].startswith("{") else {}

    def more(self, wanted=20):
        """Waits until so many new connections more were made."""
        before = self.counts()["new"]
        self.cluster.wait(lambda: self.counts()["new"] >= before + wanted, 60, f"{wanted} connections more by {self.name}")
        return self.counts()

    def close(self):
        self.cluster.kubectl("delete", "pod", "-n", self.namespace, self.name, "--grace-period=0", "--wait=false")
