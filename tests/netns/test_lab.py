"""The lab itself, with the mesh off: nodes and pods work as a network, and the judges of the other tests can fail."""

import os
import signal
import subprocess
import sys

import pytest

import lab as lab_module
import programs
from waiting import wait_for


@pytest.fixture
def pair(lab):
    return lab.node("node1").pod("client"), lab.node("node2").pod("server")


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_real_programs_talk_across_nodes_and_their_servers_name_the_client(pair, family):
    client, server = pair
    there, here = getattr(server, family), getattr(client, family)
    url = f"[{there}]" if family == "ipv6" else there
    nginx = programs.nginx(server)
    assert client.run(["curl", "-sS", f"http://{url}/whoami"]).stdout == f"{here}\n"
    assert programs.nginx_log(nginx, 1)[0]["client"] == here
    postgres = programs.postgres(server)
    client.run(["psql", "-h", there, "-U", "postgres", "-Atc", "select 1"])
    assert programs.postgres_clients(postgres, 1) == [here]
    redis = programs.redis(server)
    assert client.run(["redis-cli", "-h", there, "ping"]).stdout == "PONG\n"
    assert programs.redis_clients(redis, 1) == [here]
    programs.iperf_server(server)
    assert programs.iperf(client, there, "4M")["end"]["sum_sent"]["bytes"] >= 4 << 20
    mail = programs.smtp(server)
    programs.send_mail(client, there)
    assert set(programs.smtp_clients(mail, 1)) == {here}


def test_the_hbone_check_fails_when_the_mesh_is_off(pair):
    client, server = pair
    programs.nginx(server)
    with server.node.lab.capture(client.node) as capture:
        client.run(["curl", "-sS", f"http://{server.ipv4}/"])
    report = capture.report()
    assert report.contains(b"hello from server")
    assert any("outside of port 15008" in line for line in report.violations)
    with pytest.raises(AssertionError):
        report.require_hbone_only()


def test_the_hbone_check_fails_for_plaintext_on_port_15008(pair):
    client, server = pair
    programs.podtool(server, 15008, "echo")
    with server.node.lab.capture(client.node) as capture:
        assert client.tool("exchange", server.ipv4, 15008, "--send", 100)["how"] == "complete"
    assert any("begins no TLS record" in line for line in capture.report().violations)


def test_a_third_node_joins_the_others(lab):
    pods = [lab.node(f"node{number}").pod(f"pod{number}") for number in (1, 2, 3)]
    for server in pods:
        programs.podtool(server, 7, "echo")
    for client in pods:
        for server in pods:
            for address in server.addresses:
                assert client.tool("exchange", address, 7, "--send", 1)["how"] == "complete"


def test_a_supervisor_is_not_taken_for_the_worker_that_it_has_yet_to_start(lab):
    node = lab.node("node1")
    lab.start()
    both = set(node.agent_pids("nodemesh-proxy"))
    workers = node.agent_pids("nodemesh-proxy", workers=True)
    supervisors = both - set(workers)
    assert len(workers) == 1 and len(supervisors) == 1
    for pid in supervisors:
        os.kill(pid, signal.SIGSTOP)
    os.kill(workers[0], signal.SIGKILL)
    wait_for(lambda: set(node.agent_pids("nodemesh-proxy")) == supervisors, 10, "the worker is gone")
    assert node.agent_pids("nodemesh-proxy", workers=True) == []
    for pid in supervisors:
        os.kill(pid, signal.SIGCONT)
    wait_for(lambda: node.agent_pids("nodemesh-proxy", workers=True), 10, "another worker")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_when_the_owner_is_ended(number):
    code = ("import sys, signal; sys.path.insert(0, sys.argv[1]); import lab, programs\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "with lab.Lab() as made:\n"
            "    pod = made.node('node1').pod('a'); programs.nginx(pod)\n"
            "    print(made.run_id, flush=True); signal.pause()\n")
    owner = subprocess.Popen([sys.executable, "-c", code, os.path.dirname(lab_module.__file__)], text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    run_id = owner.stdout.readline().strip()
    assert lab_module.leftovers(run_id)
    owner.send_signal(number)
    owner.wait(20)
    if number == signal.SIGKILL:
        lab_module.sweep()
    wait_for(lambda: not lab_module.leftovers(run_id), 10, lambda: str(lab_module.leftovers(run_id)))
