"""The claims of scripts/quickstart --once, each judged from outside of the mesh: by a capture of the link between the
nodes, by the servers' own logs, by what a client gets. Our own figures are only compared with those.
"""

import time

import programs
from waiting import Timeout, wait_for

BIG = 1 << 20  # bytes of the largest file
DENY_CURL = """apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: deny-curl
  namespace: shop
spec:
  action: DENY
  rules:
    - from:
        - source:
            principals: ["cluster.local/ns/shop/sa/curl"]
"""


def say(text):
    print(text, flush=True)


class Judge:
    """The claims of --once, in order; a claim that fails is told and the next one is tried."""

    def __init__(self, quick):
        self.quick = quick
        self.lab = quick.lab
        self.failed = []

    def claim(self, text, check, *arguments):
        started = time.monotonic()
        try:
            note = check(*arguments)
        except (AssertionError, Timeout, RuntimeError, OSError, KeyError, ValueError) as error:
            self.failed.append(text)
            say(f"  FAILED  {text}\n          {type(error).__name__}: {str(error)[:1500]}")
        else:
            say(f"  ok      {text}" + (f" ({note})" if note else "") + f"  {time.monotonic() - started:.1f} s")

    def before(self):
        self.claim("with the mesh off, the check of the link between the nodes fails", self.check_can_fail)

    def after(self):
        for six in (False, True):
            family = "IPv6" if six else "IPv4"
            self.claim(f"{family}: all programs work, and between the nodes there is nothing but HBONE", self.wire, six)
            self.claim(f"{family}: every server's own log names the real client", self.clients, six)
        self.claim("connections within a node take the shortcut and leave nothing on the link", self.same_node)
        self.claim("our byte and connection counts equal nginx' own log, on both nodes", self.counts)
        self.claim("only psql reaches PostgreSQL", self.allow)
        self.claim("the mailer does not reach redis, and the log says why", self.deny)
        self.claim("PERMISSIVE serves a stranger, STRICT refuses it, live", self.strict)
        self.claim("an edit that denies curl is in force within seconds, and its removal too", self.live_edit)
        self.claim("a broken edit is named with file, object, field and fix, and changes nothing", self.broken_edit)

    def check_can_fail(self):
        pod = self.lab.pod
        with self.lab.capture(self.lab.node("node1")) as capture:
            pod("curl").run(["curl", "-sSf", f"http://{pod('nginx-2').ipv4}:8080/"])
        report = capture.report()
        assert report.contains(b"hello from nginx-2"), "the capture shows the plaintext"
        try:
            report.require_hbone_only()
        except AssertionError:
            return "plaintext on port 8080 was found"
        raise AssertionError("the check passed although nothing was encrypted")

    def wire(self, six):
        quick = self.quick
        with self.lab.capture(self.lab.node("node1")) as capture:
            assert len(quick.curl("nginx-far", "/big", six)) == BIG
            assert "marker-of-the-query" in quick.psql(six=six)
            assert quick.redis("set", "key", "marker-of-the-value", six=six).strip() == "OK"
            quick.mail(six)
            assert quick.iperf(six=six)["end"]["sum_sent"]["bytes"] >= 16 << 20
        report = capture.report()
        report.require_hbone_only()
        for marker in (b"GET /big", b"marker-of"):
            assert not report.contains(marker), f"{marker} is readable on the link"
        return f"{report.payload_bytes >> 20} MiB, {report.application_records} records, " + ", ".join(
            sorted(report.versions | report.ciphers))

    def clients(self, six):
        def address(name):
            return self.lab.pod(name).ipv6 if six else self.lab.pod(name).ipv4

        servers = self.quick.servers
        assert self.quick.curl("nginx-far", "/whoami", six).decode().strip() == address("curl")
        assert address("curl") in [line["client"] for line in programs.nginx_log(servers["nginx-2"], 1)]
        assert address("psql") in programs.postgres_clients(servers["postgres"], 1)
        assert address("redis-cli") in programs.redis_clients(servers["redis"], 1)
        assert address("mailer") in programs.smtp_clients(servers["smtp"], 1)

    def same_node(self):
        with self.lab.capture(self.lab.node("node1")) as capture:
            for six in (False, True):
                assert len(self.quick.curl("nginx-near", "/big", six)) == BIG
        assert capture.report().payload_bytes < BIG / 100, "bytes of it were on the link, where tunnels only ping"
        paths = {line["path_kind"] for line in wait_lines(self.lab.node("node1"), "dst.workload", "nginx-1")}
        assert paths == {"same-node"}, paths

    def counts(self):
        pod, server = self.lab.pod("curl"), self.lab.pod("nginx-2")
        log = programs.nginx_log(self.quick.servers["nginx-2"], 1)
        log = [line for line in log if line["client"] in pod.addresses]
        direct = 1  # the request of before the mesh was on
        expected = (len(log) - direct, sum(line["received"] for line in log[direct:]),
                    sum(line["sent"] for line in log[direct:]))
        pair = {"source_principal": pod.identity, "destination_principal": server.identity}

        def ours(node, reporter):
            page = node.metrics()
            workload = {"destination_workload": server.name, "reporter": reporter, **pair}
            return tuple(page.sum(f"istio_tcp_{what}_total", **workload)
                         for what in ("connections_closed", "received_bytes", "sent_bytes"))

        for name, reporter in (("node1", "source"), ("node2", "destination")):
            node = self.lab.node(name)
            wait_for(lambda node=node, reporter=reporter: ours(node, reporter) == expected, 10,
                     lambda node=node, reporter=reporter: f"{reporter}: {ours(node, reporter)}, nginx: {expected}")
        return f"{expected[0]} connections, {expected[1]} bytes received, {expected[2]} sent"

    def allow(self):
        assert "marker" in self.quick.psql()
        assert self.quick.refused(self.quick.psql, pod="curl"), "curl's identity reached PostgreSQL"
        return denial(self.lab.node("node2"), "POLICY_NO_ALLOW")

    def deny(self):
        assert self.quick.refused(self.quick.redis, "ping", pod="mailer"), "the mailer reached redis"
        assert self.quick.redis("ping").strip() == "PONG"
        return denial(self.lab.node("node2"), "POLICY_DENY")

    def strict(self):
        quick, server = self.quick, self.lab.pod("nginx-2")
        intruder = self.lab.pod("intruder")

        def plain():
            return intruder.run(["curl", "-sSf", "-m", "5", f"http://{server.ipv4}:8080/"], check=False).returncode == 0

        assert plain(), "PERMISSIVE takes plaintext"
        quick.edit("40-policies.yaml", "mode: PERMISSIVE", "mode: STRICT")
        took = until(lambda: not plain(), "the stranger is refused")
        assert quick.curl("nginx-far"), "the mesh is served"
        note = denial(self.lab.node("node2"), "STRICT_PLAINTEXT")
        quick.edit("40-policies.yaml", "mode: STRICT", "mode: PERMISSIVE")
        until(plain, "the stranger is served again")
        return f"{took:.2f} s, {note}"

    def live_edit(self):
        quick = self.quick
        self.lab.write("deny-curl.yaml", DENY_CURL)
        took = until(lambda: quick.refused(quick.curl, "nginx-far"), "curl is refused")
        assert quick.refused(quick.curl, "nginx-near"), "and within the node"
        self.lab.delete("deny-curl.yaml")
        back = until(lambda: not quick.refused(quick.curl, "nginx-far"), "curl is served again")
        return f"{took:.2f} s and {back:.2f} s"

    def broken_edit(self):
        quick, node = self.quick, self.lab.node("node2")
        self.lab.write("deny-curl.yaml", DENY_CURL)
        until(lambda: quick.refused(quick.curl, "nginx-far"), "curl is refused")
        self.lab.write("deny-curl.yaml", DENY_CURL.replace("action: DENY", "action: REFUSE"))
        words = ("deny-curl.yaml", "deny-curl", "spec.action", "fix")
        line = wait_for(lambda: next((line for line in node.agent.output().splitlines()
                                      if all(word in line for word in words)), None), 10, f"a line with {words}")
        assert quick.refused(quick.curl, "nginx-far"), "the last good version is in force"
        self.lab.delete("deny-curl.yaml")
        until(lambda: not quick.refused(quick.curl, "nginx-far"), "curl is served again")
        return line.strip()[-160:]


def until(condition, what):
    """Waits for the condition and returns the seconds it took."""
    started = time.monotonic()
    wait_for(condition, 10, what)
    return time.monotonic() - started


def wait_lines(node, field, value):
    def found():
        return [line for line in node.access_log() if line.get(field) == value]

    wait_for(found, 10, f"an access log line with {field}={value}")
    return found()


def denial(node, reason):
    line = wait_lines(node, "connection_termination_details", reason)[-1]
    return reason + (f" by {line['policy']}" if line.get("policy") else "")
