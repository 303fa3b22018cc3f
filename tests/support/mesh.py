"""The mesh that most tests use: two nodes, a client, a server far and near, and pods outside of the mesh.

            node1                                        node2
    shop    client (sa curl), neighbour (sa web)         server (sa web), other (sa other)
    legacy  outsider (not enrolled)                      plain (not enrolled)
"""

import contextlib

import manifests
import programs
from waiting import wait_for

ECHO = 7  # where every server of the mesh echoes


class Mesh:
    def __init__(self, lab, start=True):
        self.lab = lab
        self.node1, self.node2 = lab.node("node1"), lab.node("node2")
        self.client = self.node1.pod("client", "shop", "curl", {"app": "client"})
        self.neighbour = self.node1.pod("neighbour", "shop", "web", {"app": "web", "version": "v1"})
        self.server = self.node2.pod("server", "shop", "web", {"app": "web", "version": "v2"})
        self.other = self.node2.pod("other", "shop", "other", {"app": "other"})
        self.outsider = self.node1.pod("outsider", "legacy", "old")
        self.plain = self.node2.pod("plain", "legacy", "old")
        lab.apply(manifests.namespace("legacy"), manifests.namespace("istio-system"),
                  manifests.mesh_config("accessLogFile: /dev/stdout\naccessLogEncoding: JSON\n"))
        self.echo = {pod.name: programs.podtool(pod, ECHO, "echo")
                     for pod in (self.neighbour, self.server, self.other, self.plain)}
        if start:
            lab.start()

    # Reaching ------------------------------------------------------------------------------------------------

    @staticmethod
    def attempt(client, server, port=ECHO, **options):
        """One byte to the echo server and back; returns podtool's account of it."""
        host = server if isinstance(server, str) else server.ipv4
        words = [word for key, value in options.items() for word in (f"--{key}", value)]
        return client.tool("exchange", host, port, "--send", 1, *words)

    def reaches(self, client, server, port=ECHO):
        return self.attempt(client, server, port)["how"] == "complete"

    def wait_reaches(self, client, server, port=ECHO, seconds=10):
        wait_for(lambda: self.reaches(client, server, port), seconds, f"{client.name} reaches {server}:{port}")

    def wait_refused(self, client, server, port=ECHO, seconds=10):
        """Waits until it is refused, and asserts that a refusal is a reset: nothing that looks like an answer."""
        result = {}

        def refused():
            result.update(self.attempt(client, server, port))
            return result["how"] != "complete"

        wait_for(refused, seconds, f"{client.name} is refused at {server}:{port}")
        assert result["received"] == 0 and result["how"] == "ECONNRESET", result

    # Objects in force for a while ----------------------------------------------------------------------------

    def generations(self):
        return [node.metrics().sum("nodemesh_config_generation") for node in self.lab.nodes if node.agent]

    def wait_generation_after(self, before):
        wait_for(lambda: all(now > then for now, then in zip(self.generations(), before)), 10,
                 lambda: f"a generation after {before} on every node")

    def apply(self, *things):
        """Applies objects and waits until every node has a newer generation in force."""
        before = self.generations()
        self.lab.apply(*things)
        self.wait_generation_after(before)

    @contextlib.contextmanager
    def objects(self, *things):
        """The objects are in force within the block and gone after it."""
        self.apply(*things)
        try:
            yield
        finally:
            before = self.generations()
            for thing in things:
                self.lab.delete(thing)
            self.wait_generation_after(before)

    # Witnesses -----------------------------------------------------------------------------------------------

    def ended(self, node, reason, **labels):
        """Connections of a node that ended with the reason."""
        return node.metrics().sum("nodemesh_connections_total", reason=reason, **labels)

    @contextlib.contextmanager
    def expect_reason(self, node, reason, **labels):
        """Within the block at least one connection of the node ends with the reason."""
        before = self.ended(node, reason, **labels)
        yield
        wait_for(lambda: self.ended(node, reason, **labels) > before, 10, lambda: (
            f"{reason} {labels} in nodemesh_connections_total of {node.name}:\n" + "\n".join(
                line for line in node.metrics().text.splitlines() if line.startswith("nodemesh_connections_total"))))

    def log_entry(self, node, **fields):
        """Waits for an access log line of the node with these fields (dots as __) and returns the newest."""
        wanted = {key.replace("__", "."): value for key, value in fields.items()}

        def found():
            return [line for line in node.access_log() if all(line.get(k) == v for k, v in wanted.items())]

        wait_for(found, 10, f"an access log line with {wanted}")
        return found()[-1]
