"""The mesh's listeners in pods' namespaces: against processes of the pods, and as they pass from proxy to proxy."""

import contextlib
import os
import select
import signal
import socket
import struct

import manifests
import programs
from mesh import ECHO
from waiting import wait_for

UNPRIVILEGED = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
PODTOOL = f"{os.path.dirname(programs.__file__)}/podtool.py"


@contextlib.contextmanager
def thief(pod):
    """A process of uid 0 without a capability that tries to get onto our listeners' ports; yields what it did."""
    process = pod.spawn([*UNPRIVILEGED, "/usr/bin/python3", "-S", "-u", PODTOOL, "thief", ECHO, *pod.addresses])
    try:
        process.wait_output('"thief"')
        with open(f"/proc/{process.pid}/status", encoding="ascii") as lines:
            assert "CapEff:\t0000000000000000\n" in lines, "it has capabilities, which proves too much"
        yield process
    finally:
        process.stop()


def test_no_process_of_a_pod_gets_a_share_of_the_connections_that_are_steered_to_the_proxy(mesh):
    with mesh.objects(manifests.peer_authentication("default", "shop", "STRICT")):
        with thief(mesh.server) as inbound, thief(mesh.client) as outbound:
            for process in (inbound, outbound):
                assert programs.events(process, "thief")[0]["tried"] >= 3, "outbound, inbound, HBONE"
            plaintext = mesh.outsider.tool("many", mesh.server.ipv4, ECHO, 100)["outcomes"]
            captured = mesh.client.tool("many", mesh.server.ipv4, ECHO, 100)["outcomes"]
            # Tunnels of other clients and addresses: new connections to the HBONE listener.
            tunnels = [mesh.reaches(client, host) for client in (mesh.client, mesh.neighbour)
                       for host in mesh.server.addresses]
            for process in (inbound, outbound):
                assert not programs.events(process, "stolen")
                assert not programs.events(process, "thief")[0]["bound"]
            assert captured == {"ok": 100, "unanswered": 0} and not plaintext.get("ok") and all(tunnels)


def test_an_application_may_bind_its_port_anew_while_connections_from_outside_are_open(mesh):
    server = programs.podtool(mesh.server, 9000, "echo")
    held = mesh.outsider.spawn_tool("many", mesh.server.ipv4, 9000, 5, "--hold")
    held.wait_output('"many"')
    assert programs.events(held, "many")[0]["outcomes"]["ok"] == 5
    server.kill()
    wait_for(lambda: "9000" not in {str(port) for _, port in mesh.server.sockets()}, 10, "the listener is gone")
    again = programs.podtool(mesh.server, 9000, "echo")
    assert mesh.reaches(mesh.outsider, mesh.server, 9000)
    for process in (held, again):
        process.stop()


def test_a_borrowed_address_comes_with_a_port_that_the_client_does_not_use_itself(mesh):
    server = programs.podtool(mesh.server, 9001, "echo")
    clients = (mesh.outsider, mesh.client, mesh.other)  # plaintext, HBONE, the same node
    for client in clients:
        assert client.tool("many", mesh.server.ipv4, 9001, 20)["outcomes"] == {"ok": 20, "unanswered": 0}
    seen = [event["peer"] for event in programs.events(server, "accept")]
    assert {address.removeprefix("::ffff:") for address, _ in seen} == {client.ipv4 for client in clients}
    assert not [port for _, port in seen if not 10240 <= port <= 32767]
    server.stop()


class Proxy:
    """A proxy of our own on the warden's channel, which does nothing but say what it is told to."""

    HELLO, RETURN_DONE, TAKEOVER_READY, WELCOME, POD_ADD, SNAPSHOT_SENT = 1, 3, 5, 64, 65, 71
    VERSION, DRAINING = 3, 1

    def __init__(self, node, workers, flags=0):
        self.sequence = 0
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(10)
        self.socket.connect(f"{node.run_dir}/warden.sock")
        self.say(self.HELLO, struct.pack("<III", self.VERSION, workers, flags))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def say(self, kind, body=b""):
        self.sequence += 1
        self.socket.sendall(struct.pack("<HHI", kind, 8 + len(body), self.sequence) + body)

    def hear(self):
        """(type, body, descriptors) of the next message; type 0: the warden has hung up."""
        data, descriptors, _, _ = socket.recv_fds(self.socket, 65536, 253)
        return (struct.unpack_from("<H", data)[0] if data else 0), data[8:], descriptors

    def welcomed(self):
        with contextlib.suppress(BrokenPipeError):  # it may have hung up at HELLO
            self.say(self.RETURN_DONE)
        with contextlib.suppress(ConnectionResetError):
            return self.hear()[0] == self.WELCOME
        return False

    def take_over(self, count):
        """Waits for so many pods and says that it accepts for them; their listeners' descriptors."""
        listeners = []
        while count:
            kind, body, descriptors = self.hear()
            assert kind, "the warden has hung up"
            if kind == self.POD_ADD and descriptors:
                listeners += descriptors
                self.say(self.TAKEOVER_READY, body[:8])
                count -= 1
        return listeners


@contextlib.contextmanager
def without_proxy(node):
    """The proxy is killed and stays away until the end of the block."""
    workers = node.agent_pids("nodemesh-proxy", workers=True)
    supervisors = [pid for pid in node.agent_pids("nodemesh-proxy") if pid not in workers]
    assert workers and supervisors
    for pid in supervisors:
        os.kill(pid, signal.SIGSTOP)
    try:
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: "proxy left" in node.agent.output(), 10, "the warden notices")
        yield
    finally:
        for pid in supervisors:
            os.kill(pid, signal.SIGCONT)


def test_a_proxy_with_another_number_of_workers_is_refused_while_one_serves(own_mesh):
    mesh = own_mesh
    with Proxy(mesh.node1, 1) as other:
        assert not other.welcomed()
    wait_for(lambda: "the proxy has 1 workers and another that serves has 2: give both the same --workers"
             in mesh.node1.agent.output(), 10, "the warden says why")
    assert mesh.reaches(mesh.client, mesh.server)
    with Proxy(mesh.node1, 2) as other:
        assert other.welcomed()
        other.take_over(2)
    # Nothing was stranded: both have the same listeners.
    for _ in range(20):
        assert mesh.reaches(mesh.client, mesh.server) and mesh.reaches(mesh.outsider, mesh.neighbour)


def test_after_the_last_proxy_has_left_one_with_another_number_of_workers_takes_over(own_mesh):
    mesh = own_mesh
    with without_proxy(mesh.node1), Proxy(mesh.node1, 1) as other:
        assert other.welcomed()
        listeners = other.take_over(2)
        assert len(listeners) == 2 * 3
        attempts = mesh.client.spawn_tool("many", mesh.server.ipv4, ECHO, 60)
        accepted = []

        def all_came():
            for ready in select.select(listeners, [], [], 0)[0]:
                with socket.socket(fileno=os.dup(ready)) as listener:
                    accepted.append(listener.accept()[0])
            return len(accepted) == 60

        wait_for(all_came, 10, "every captured connection reaches the one worker")
        for end in accepted:
            end.close()
        attempts.wait_output('"many"')
        for descriptor in listeners:
            os.close(descriptor)
    mesh.node1.wait_ready(20)
    mesh.wait_reaches(mesh.client, mesh.server)
    for _ in range(20):
        assert mesh.reaches(mesh.client, mesh.server) and mesh.reaches(mesh.outsider, mesh.neighbour)


def test_a_proxy_that_drains_is_told_of_the_pods_and_counts_for_nothing_else(own_mesh):
    mesh = own_mesh
    with Proxy(mesh.node1, 1, Proxy.DRAINING) as draining:
        assert draining.welcomed()
        heard = [draining.hear() for _ in range(4)]
        assert heard[-1][0] == Proxy.SNAPSHOT_SENT
        pods = [(body, descriptors) for kind, body, descriptors in heard if kind == Proxy.POD_ADD]
        assert len(pods) == 2 and not any(descriptors for _, descriptors in pods)
        for body, _ in pods:
            draining.say(Proxy.TAKEOVER_READY, body[:8])
        victims = mesh.node1.agent_pids("nodemesh-proxy", workers=True)
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: set(mesh.node1.agent_pids("nodemesh-proxy", workers=True)) - set(victims), 10, "another one")
        mesh.wait_reaches(mesh.client, mesh.server)
        for _ in range(20):
            assert mesh.reaches(mesh.client, mesh.server) and mesh.reaches(mesh.outsider, mesh.neighbour)


def drain(mesh):
    """An open connection of client, and the proxy that keeps it and drains."""
    session = mesh.client.spawn_tool("session", mesh.server.ipv4, ECHO)
    session.wait_output('"open"')
    draining, = mesh.node1.agent_pids("nodemesh-proxy", workers=True)
    os.kill(draining, signal.SIGTERM)
    wait_for(lambda: "stopping: open connections" in mesh.node1.agent.output(), 10, "the proxy drains")
    return session, draining


def test_a_proxy_that_drains_while_its_warden_restarts_is_welcome_and_takes_no_listener(own_mesh):
    mesh = own_mesh
    node = mesh.node1
    session, draining = drain(mesh)
    wait_for(lambda: not node.ctl("get", "listeners", "-o", "json")["items"], 10, "it has closed its listeners")
    for pid in node.agent_pids("nodemesh-warden", workers=True):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: node.agent.output().count(f"proxy connected pid={draining} ") == 2, 10,
             lambda: "the new warden takes it:\n" + node.agent.output()[-3000:])
    assert not mesh.reaches(mesh.client, mesh.server), "nobody accepts, and nobody passes"
    assert session.running and not programs.events(session, "session"), "what was open goes on"
    session.stop()
    wait_for(lambda: draining not in node.agent_pids("nodemesh-proxy"), 20, "with the last connection it leaves")
    node.wait_ready(20)
    mesh.wait_reaches(mesh.client, mesh.server)


def test_a_proxy_that_drains_ends_early_when_its_warden_is_gone_for_good(own_mesh):
    """Where Kubernetes replaces an agent, nobody serves the node's pods until the old one has ended."""
    mesh = own_mesh
    node = mesh.node1
    session, draining = drain(mesh)

    def gone():  # a warden that is started again ends before it is of use
        for pid in node.agent_pids("nodemesh-warden", workers=True):
            os.kill(pid, signal.SIGKILL)
        return draining not in node.agent_pids("nodemesh-proxy", workers=True)

    wait_for(gone, 20, "it leaves")
    assert "no warden came back for 5 s" in node.agent.output()
    session.stop()
