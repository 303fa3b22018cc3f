"""The mesh of mesh.py as the wire tests use it: with a peer that is played by the test, and what every hostile case
must leave true."""

import contextlib
import os

import certificates
import hbone
from mesh import ECHO, Mesh
from waiting import wait_for


class Wire(Mesh):
    """The mesh of support/mesh.py and a third node without an agent, whose pods are in the mesh all the same: a test
    plays the agent there, with credentials of the lab's own authority."""

    def __init__(self, lab, extra=()):
        super().__init__(lab, start=False)
        self.node3 = lab.node("node3")
        self.peer = self.node3.pod("peer", "shop", "peer", {"app": "peer"})
        lab.write_manifests()
        lab.start_controller()
        for node in (self.node1, self.node2):
            node.start_agent(extra=extra)
        self.authority = certificates.Authority.of_lab(lab)
        self.good = self.authority.issue(self.peer.identity)

    def dial(self, **options):
        """A good HBONE connection from the peer pod to the server pod."""
        return hbone.Client(self.peer, self.server.ipv4, self.authority, self.good, **options)

    def raw(self, **options):
        return hbone.RawClient(self.peer, self.server.ipv4, self.authority, self.good, **options)

    @property
    def target(self):
        return f"{self.server.ipv4}:{ECHO}"

    def counted(self, reasons):
        """How often the server's node has counted one of the reasons, in whichever metric."""
        return sum(s.value for s in self.node2.metrics().samples if s.labels.get("reason") in reasons)

    def logged(self, reasons):
        return sum(line.count(reason) for line in self.node2.agent.output().splitlines() for reason in reasons)

    def memory_kib(self):
        sizes = []
        for pid in self.node2.agent_pids("nodemesh-proxy", workers=True):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/status", encoding="ascii") as status:
                sizes += [int(line.split()[1]) for line in status if line.startswith("VmRSS")]
        return max(sizes)

    @contextlib.contextmanager
    def under_attack(self, *reasons, memory_kib=8192, logged=True):
        """What every hostile case must leave true: a good connection and its stream are served before, meanwhile and
        after, a fresh one too, one of the reasons stands in a metric and the log, and memory is bounded."""
        with Client(self) as good:
            before, lines, memory = self.counted(reasons), self.logged(reasons), self.memory_kib()
            yield good
            good.check()
            with Client(self) as fresh:
                fresh.check()
            if reasons:
                wait_for(lambda: self.counted(reasons) > before, 10, lambda: (
                    f"{reasons} in a metric:\n" + "\n".join(line for line in self.node2.metrics().text.splitlines()
                                                           if "reason=" in line and not line.endswith(" 0"))))
            if reasons and logged:
                wait_for(lambda: self.logged(reasons) > lines, 10, f"{reasons} in the log")
            grown = self.memory_kib() - memory
            if not os.environ.get("NODEMESH_SANITISED"):  # that build keeps what was freed
                assert grown < memory_kib, f"the proxy grew by {grown} KiB"


class Client:
    """A well-behaved connection with one open stream, to be checked while others misbehave."""

    def __init__(self, wire):
        self.client = wire.dial()
        self.stream, status = self.client.connect(wire.target)
        assert status == 200
        self.check()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.close()

    def check(self):
        assert self.client.echo(self.stream, b"still here?") == b"still here?"
