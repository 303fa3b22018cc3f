"""Too much of everything: the pod that asks for too much gets an error, and the others are served."""

import contextlib
import os

import pytest

import programs
from lab import Lab
from mesh import ECHO, Mesh
from waiting import wait_for


def memory_kib(node, program="nodemesh-proxy"):
    """Resident memory of the program's largest process."""
    sizes = []
    for pid in node.agent_pids(program, workers=True):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/status", encoding="ascii") as status:
            sizes += [int(line.split()[1]) for line in status if line.startswith("VmRSS")]
    return max(sizes)


@pytest.mark.parametrize("server", ["server", "neighbour"])
def test_five_thousand_connections_at_once_are_all_served(mesh, server):
    target = getattr(mesh, server)
    mesh.wait_reaches(mesh.client, target)
    before = memory_kib(mesh.node1)
    result = mesh.client.spawn_tool("many", target.ipv4, ECHO, 5000, "--hold")
    result.wait_output('"many"', 60)
    outcomes = programs.events(result, "many")[0]["outcomes"]
    assert outcomes.pop("ok", 0) == 5000, outcomes
    assert mesh.reaches(mesh.other, mesh.server), "others are served meanwhile"
    if not os.environ.get("NODEMESH_SANITISED"):
        assert memory_kib(mesh.node1) - before < 5000 * 16, "memory per connection is bounded"
    result.kill()
    for node in (mesh.node1, target.node):
        wait_for(lambda node=node: node.metrics().sum("nodemesh_connections_open") == 0, 20, "all are closed")


def test_a_stalled_reader_holds_little_memory_and_nobody_else_up(mesh):
    mesh.wait_reaches(mesh.client, mesh.server)
    hold = programs.podtool(mesh.server, 9200, "hold")
    before = {node.name: memory_kib(node) for node in (mesh.node1, mesh.node2)}
    writers = [mesh.client.spawn_tool("exchange", mesh.server.ipv4, 9200, "--send", 64 << 20, "--timeout", 60)
               for _ in range(8)]
    wait_for(lambda: len(programs.events(hold, "accept")) == 8, 10, "all writers are connected")
    for _ in range(20):
        assert mesh.reaches(mesh.client, mesh.server), "a stream beside the stalled ones is served"
    if not os.environ.get("NODEMESH_SANITISED"):
        for node in (mesh.node1, mesh.node2):
            assert memory_kib(node) - before[node.name] < 8 * 1024 + 4096, node.name
    for writer in writers:
        writer.kill()
    hold.stop()


def test_when_descriptors_run_out_new_connections_are_refused_and_old_ones_live():
    with Lab() as lab:
        mesh = Mesh(lab, start=False)
        lab.write_manifests()
        lab.start_controller()
        mesh.node1.start_agent(wrap=("prlimit", "--nofile=512:512"))
        mesh.node2.start_agent()
        session = mesh.client.spawn_tool("session", mesh.server.ipv4, ECHO)
        session.wait_output('"open"')
        flood = mesh.neighbour.spawn_tool("many", mesh.server.ipv4, ECHO, 1000, "--hold")
        flood.wait_output('"many"', 90)
        outcomes = programs.events(flood, "many")[0]["outcomes"]
        assert 0 < outcomes.get("ok", 0) < 600 and not outcomes["unanswered"], outcomes
        assert mesh.node1.metrics().sum("nodemesh_connections_total", reason=lambda r: r in (
            "OUT_OF_DESCRIPTORS", "OVER_LIMIT", "NO_SOCKET")) > 0
        wait_for(lambda: "descriptors are short" in mesh.node1.agent.output(), 10, "the operator is told")
        assert not programs.events(session, "session"), "another pod's connection lives"
        mesh.wait_reaches(mesh.client, mesh.server)  # room is made for it, a moment later
        flood.kill()
        mesh.wait_reaches(mesh.neighbour, mesh.server)
        session.stop()


def test_one_pod_cannot_take_the_share_of_another(mesh):
    greedy = mesh.neighbour.spawn_tool("many", mesh.other.ipv4, ECHO, 15000, "--hold")
    greedy.wait_output('"many"', 120)
    for _ in range(10):
        assert mesh.reaches(mesh.client, mesh.server)
    greedy.kill()
    wait_for(lambda: mesh.node1.metrics().sum("nodemesh_connections_open") == 0, 30, "all are closed")


def test_a_connection_on_which_nothing_moves_is_reset_after_its_time_and_the_log_says_why():
    with Lab() as lab:
        mesh = Mesh(lab, start=False)
        lab.write_manifests()
        lab.start_controller()
        mesh.node1.start_agent(extra=("--", "--connection-idle-ms", "3000"))
        mesh.node2.start_agent()
        mesh.wait_reaches(mesh.client, mesh.neighbour)
        mesh.wait_reaches(mesh.client, mesh.server)
        busy = mesh.client.spawn_tool("session", mesh.neighbour.ipv4, ECHO)
        busy.wait_output('"open"')
        for server in (mesh.neighbour, mesh.server):
            mesh.client.spawn_tool("many", server.ipv4, ECHO, 1, "--hold").wait_output('"many"')
        ended = mesh.node1.metrics
        wait_for(lambda: ended().sum("nodemesh_connections_total", reason="IDLE_TIMEOUT") == 1, 30,
                 "the silent connection is ended")
        wait_for(lambda: '"connection_termination_details":"IDLE_TIMEOUT"' in mesh.node1.agent.output(), 10,
                 "the access log says why")
        assert not programs.events(busy, "session"), "the one in use lives"
        assert ended().sum("nodemesh_connections_open", path="hbone") == 1, "between agents a silent stream lives"
