"""The independent client and server of the other files, with the mesh off: they understand each other, and the
hostile client really says what it means to."""

import hyperframe.frame as frames
import pytest

import certificates
import hbone


@pytest.fixture
def ends(lab):
    """(client pod, server pod, authority, credential of each)."""
    authority = certificates.Authority.stranger(f"{lab.dir}/certificates", "root")
    names = [f"spiffe://cluster.local/ns/default/sa/{name}" for name in ("client", "server")]
    return (lab.node("node1").pod("client"), lab.node("node2").pod("server"), authority,
            *(authority.issue(name) for name in names))


def test_client_and_server_carry_streams_and_know_each_other(ends):
    here, there, authority, mine, theirs = ends
    with hbone.Server(there, authority, theirs) as server:
        with here.node.lab.capture(here.node) as capture, hbone.Client(here, there.ipv4, authority, mine) as client:
            for _ in range(3):
                stream, status = client.connect("10.0.0.1:80", [("baggage", "a=b")])
                assert status == 200
                client.send(stream, b"x" * 1000000)
                assert client.receive(stream, 1000000) == b"x" * 1000000
                client.send(stream, b"", end=True)
                client.pump(lambda stream=stream: stream in client.ended)
            assert client.peer_names == ["spiffe://cluster.local/ns/default/sa/server"]
        assert server.connections[0]["names"] == ["spiffe://cluster.local/ns/default/sa/client"]
        assert server.connections[0]["alpn"] == "h2" and server.connections[0]["sni"] is None
        assert len(server.requests) == 3 and not server.errors
    report = capture.report()
    report.require_hbone_only()
    assert report.versions == {"TLSv1.3"} and len(report.ciphers) == 1


@pytest.mark.parametrize("mode,status", [("refuse", 503), ("reset", None), ("goaway", 200)])
def test_the_server_can_misbehave(ends, mode, status):
    here, there, authority, mine, theirs = ends
    with hbone.Server(there, authority, theirs, mode=mode):
        with hbone.Client(here, there.ipv6, authority, mine) as client:
            stream, got = client.connect("[fd00::1]:80")
            assert got == status
            if mode == "goaway":
                client.pump(lambda: client.goaway is not None)


def test_the_raw_client_reads_and_writes_frames(ends):
    here, there, authority, mine, theirs = ends
    with hbone.Server(there, authority, theirs), hbone.RawClient(here, there.ipv4, authority, mine) as raw:
        raw.send(raw.connect(1, "10.0.0.1:80"))
        assert raw.status(raw.frames_until(frames.HeadersFrame)[-1]) == 200
        raw.send(frames.DataFrame(1, b"abc"))
        assert raw.frames_until(frames.DataFrame)[-1].data == b"abc"
        raw.send(b"\0\0\1\x06\0\0\0\0\0x")
        raw.wait_closed()
