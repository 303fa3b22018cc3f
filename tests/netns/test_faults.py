"""Agents that are killed at any moment: what stays, what waits, and that nothing ever bypasses the mesh."""

import contextlib
import os
import signal
import time

import pytest

import cgroups
import manifests
import programs
from mesh import ECHO, Mesh
from waiting import wait_for


def kill(node, program):
    """kill -9 of the program on the node, but not of the supervisor above it; returns the ids."""
    victims = wait_for(lambda: node.agent_pids(program, workers=True), 10, f"{program} runs on {node.name}")
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return victims


def wait_replaced(node, program, victims, seconds=10):
    wait_for(lambda: set(node.agent_pids(program, workers=True)) - set(victims), seconds, f"{program} is back")
    node.wait_ready(seconds)


def wait_back(mesh, node, program, victims):
    wait_replaced(node, program, victims)
    mesh.wait_reaches(mesh.client, mesh.server)


@pytest.mark.parametrize("where", ["node1", "node2"])
def test_a_killed_proxy_is_back_and_no_new_connection_is_refused_meanwhile(own_mesh, where):
    mesh = own_mesh
    node = getattr(mesh, where)
    attempts = mesh.client.spawn_tool("loop", mesh.server.ipv4, ECHO)
    attempts.wait_output('"first"')
    for _ in range(3):
        victims = kill(node, "nodemesh-proxy")
        wait_back(mesh, node, "nodemesh-proxy", victims)
    attempts.stop()
    result = programs.events(attempts, "loop")[0]
    assert result["outcomes"]["ok"] > 10 and result["longest_gap"] < 10, result
    assert set(result["outcomes"]) <= {"ok", "ECONNRESET", "fin"}, "connects wait; only what was under way breaks"
    broken = sum(n for how, n in result["outcomes"].items() if how != "ok")
    assert broken <= 3, f"one is under way at a time, so one breaks per kill: {result}"


@pytest.mark.parametrize("where", ["node1", "node2"])
def test_a_killed_warden_breaks_no_connection_and_is_back(own_mesh, where):
    mesh = own_mesh
    node = getattr(mesh, where)
    session = mesh.client.spawn_tool("session", mesh.server.ipv4, ECHO)
    session.wait_output('"open"')
    attempts = mesh.client.spawn_tool("loop", mesh.server.ipv4, ECHO)
    attempts.wait_output('"first"')
    for _ in range(3):
        victims = kill(node, "nodemesh-warden")
        wait_back(mesh, node, "nodemesh-warden", victims)
    assert not programs.events(session, "session"), "an open connection lives through it"
    session.stop()
    attempts.stop()
    result = programs.events(attempts, "loop")[0]
    assert result["longest_gap"] < 10 and result["outcomes"]["ok"] > 10, result


def openers(node):
    """Process ids of the node's opener: none, or one."""
    found = set()
    for pid in cgroups.members(node.cgroup):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/comm", encoding="ascii") as name:
            if name.read() == "nm-opener\n":
                found.add(pid)
    return found


def test_a_pod_that_nobody_named_stays_out_while_no_opener_can_start(own_mesh):
    mesh = own_mesh
    mesh.wait_reaches(mesh.client, mesh.server)
    unknown = mesh.node1.pod("unknown", "shop", "unknown", apply=False)
    attempts = unknown.spawn_tool("loop", mesh.plain.ipv4, ECHO)
    attempts.wait_output('"first"')
    seen = openers(mesh.node1)
    with cgroups.frozen(cgroups.of(min(seen))):  # a new opener stops when it joins, before it can say that it is ready
        for pid in seen:
            os.kill(pid, signal.SIGKILL)
        for _ in range(3):
            wait_for(lambda: openers(mesh.node1) - seen, 15, "another opener")
            seen |= openers(mesh.node1)
    attempts.stop()
    outcomes = programs.events(attempts, "loop")[0]["outcomes"]
    assert "ok" not in outcomes and sum(outcomes.values()) > 10, outcomes
    mesh.wait_reaches(mesh.client, mesh.server, seconds=20)


@pytest.mark.parametrize("program", ["nodemesh-proxy", "nodemesh-warden"])
@pytest.mark.parametrize("where", ["node1", "node2"])
def test_forbidden_traffic_never_succeeds_while_processes_are_killed(own_mesh, where, program):
    mesh = own_mesh
    node = getattr(mesh, where)
    mesh.apply(manifests.peer_authentication("default", "shop", "STRICT"),
               manifests.authorization_policy("deny", "shop", "DENY",
                                              [manifests.from_principal(mesh.client.principal)]))
    for client in (mesh.client, mesh.outsider):
        mesh.wait_refused(client, mesh.server)
    loops = [client.spawn_tool("loop", server.ipv4, ECHO) for client in (mesh.client, mesh.outsider)
             for server in (mesh.server, mesh.neighbour)]
    for loop in loops:
        loop.wait_output('"first"')
    for _ in range(5):
        victims = kill(node, program)
        wait_replaced(node, program, victims, 15)
    for loop in loops:
        loop.stop(seconds=20)
        outcomes = programs.events(loop, "loop")[0]["outcomes"]
        assert "ok" not in outcomes and sum(outcomes.values()) > 10, outcomes


def test_a_whole_agent_killed_fails_closed_and_recovers_on_its_pins(own_mesh):
    mesh = own_mesh
    mesh.wait_reaches(mesh.client, mesh.server)
    group = mesh.node1.agent.pid
    for program in ("nodemesh-warden", "nodemesh-proxy", "meshctl"):
        for pid in mesh.node1.agent_pids(program):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not mesh.node1.agent.running, 10, f"{group} is gone")
    with mesh.lab.capture(mesh.node1) as capture:
        for _ in range(20):
            assert not mesh.attempt(mesh.client, mesh.server, timeout=1)["received"]
    assert ECHO not in capture.report().ports(), "not one segment goes around the mesh"
    mesh.node1.start_agent()
    mesh.wait_reaches(mesh.client, mesh.server)


def test_a_stopped_agent_leaves_nothing_and_its_pods_without_a_mesh(own_mesh):
    mesh = own_mesh
    mesh.wait_reaches(mesh.client, mesh.server)
    assert mesh.node1.stop_agent() == 0
    assert not mesh.node1.agent_pids("nodemesh-warden") and not mesh.node1.agent_pids("nodemesh-proxy")
    assert not [name for name in os.listdir(mesh.node1.bpf_dir) if not name.endswith(".debug")]  # the kernel's own
    attached = mesh.node1.run(["bpftool", "cgroup", "tree", mesh.node1.cgroup]).stdout.splitlines()
    assert not [line for line in attached if "connect" in line or "sock_ops" in line], attached
    with mesh.lab.capture(mesh.node1) as capture:
        mesh.wait_reaches(mesh.client, mesh.server)
    assert ECHO in capture.report().ports(), "its pods talk as they did before"
    assert os.listdir(mesh.node1.run_dir) == []


def test_keys_are_taken_over_although_the_authority_was_faster_than_the_warden(own_mesh):
    mesh = own_mesh
    mesh.wait_reaches(mesh.client, mesh.server)
    wardens = mesh.node1.agent_pids("nodemesh-warden", workers=True)
    for pid in wardens:
        os.kill(pid, signal.SIGSTOP)
    kill(mesh.node1, "nodemesh-proxy")
    wait_for(lambda: mesh.node1.agent.output().count("certificate issued") >= 4, 10, "new certificates")
    for pid in wardens:
        os.kill(pid, signal.SIGCONT)
    mesh.wait_reaches(mesh.client, mesh.server)
    assert "took over keys" in mesh.node1.agent.output()


def test_keys_survive_the_proxy_although_the_authority_is_down(own_mesh):
    mesh = own_mesh
    mesh.wait_reaches(mesh.client, mesh.server)
    mesh.lab.controller.kill()
    for node in (mesh.node1, mesh.node2):
        victims = kill(node, "nodemesh-proxy")
        wait_back(mesh, node, "nodemesh-proxy", victims)
    mesh.wait_reaches(mesh.client, mesh.server)


def test_certificates_are_renewed_at_half_life_while_connections_stay_and_an_agent_says_when_they_expire(lab):
    mesh = Mesh(lab, start=False)
    lab.write_manifests()
    lab.start(extra=("--cert-lifetime", "20s"))
    session = mesh.client.spawn_tool("session", mesh.server.ipv4, ECHO)
    session.wait_output('"open"')

    def expiry():
        return mesh.node2.metrics().sum("nodemesh_certificate_expiry_seconds", identity=mesh.server.identity)

    first = expiry()
    wait_for(lambda: expiry() > first, 20, "a newer certificate")
    second = expiry()
    wait_for(lambda: expiry() > second, 20, "one more")
    assert mesh.reaches(mesh.client, mesh.server) and not programs.events(session, "session")
    session.stop()
    lab.controller.kill()
    expired = f"the certificate of {mesh.server.identity} has expired: "
    wait_for(lambda: expired in mesh.node2.http_get(15021, "/healthz/ready")[1], 60, "an agent without certificates says so")
    assert not mesh.node2.is_ready()
    assert 0 < expiry() < time.time(), "what an alert looks at stays"
