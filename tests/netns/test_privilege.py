"""What the running processes may do, read from /proc."""

import json

from mesh import ECHO

# linux/capability.h
NET_BIND_SERVICE, NET_ADMIN, SYS_PTRACE, SYS_ADMIN, PERFMON, BPF = 10, 12, 19, 21, 38, 39


def status(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as lines:
        return dict(line.rstrip("\n").split(":\t", 1) for line in lines if ":\t" in line)


def capabilities(pid):
    mask = int(status(pid)["CapEff"], 16)
    return {number for number in range(64) if mask >> number & 1}


def test_the_proxy_has_no_privilege_at_all(mesh):
    for pid in mesh.node1.agent_pids("nodemesh-proxy", workers=True):
        seen = status(pid)
        assert set(seen["Uid"].split()) == {"65532"} and set(seen["Gid"].split()) == {"65532"}
        assert not seen["Groups"].strip()
        assert all(int(seen[name], 16) == 0 for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"))
        assert seen["NoNewPrivs"] == "1" and seen["Seccomp"] == "2"


def test_the_warden_keeps_what_it_needs_and_nothing_else(mesh):
    for pid in mesh.node1.agent_pids("nodemesh-warden", workers=True):
        assert capabilities(pid) <= {NET_ADMIN, SYS_PTRACE, SYS_ADMIN, PERFMON, BPF}, capabilities(pid)


def test_a_pod_reaches_neither_admin_nor_metrics_nor_the_authority(mesh):
    for host in (mesh.node1.ipv4, mesh.node2.ipv4, mesh.node1.gateway, "127.0.0.1"):
        for port in (15000, 15021 if host == "127.0.0.1" else 15000):
            result = mesh.client.tool("exchange", host, port, "--send", 1, "--timeout", 2)
            assert result["received"] == 0, (host, port, result)
    assert mesh.reaches(mesh.client, mesh.server, ECHO)


def test_no_secret_is_in_what_the_admin_port_tells(mesh):
    text = json.dumps([mesh.node1.ctl("get", kind, "-o", "json") for kind in (
        "workloads", "services", "policies", "certs", "connections", "listeners")])
    assert "PRIVATE KEY" not in text
    status_code, dump = mesh.node1.http_get(15000, "/config_dump")
    assert status_code == 200 and "PRIVATE KEY" not in dump
