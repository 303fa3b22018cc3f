"""The mesh's listeners in pods' namespaces, against processes of the pods themselves."""

import contextlib
import os

import manifests
import programs
from mesh import ECHO

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
