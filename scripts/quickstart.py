"""The story of scripts/quickstart: what stands in examples/quickstart comes alive, and is shown or judged.

Every judgement is made from outside of the mesh: by a capture of the link between the nodes, by the servers' own logs,
by what a client gets. Our own figures are only compared with those.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections import OrderedDict

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, f"{ROOT}/tests/support")

import lab as labs  # noqa: E402
import programs  # noqa: E402
from waiting import Timeout, wait_for  # noqa: E402

import yaml  # noqa: E402

MAIL = "marker-of-the-mail\n"
BIG = 1 << 20


class Quickstart:
    """The lab of examples/quickstart with its programs; steps are announced with what they wait for."""

    def __init__(self, lab):
        self.lab = lab
        self.vips = {}
        self.servers = {}

    def make(self):
        say("[3/6] nodes and pods from examples/quickstart: waiting for namespaces and cgroups")
        self.lab.load(f"{ROOT}/examples/quickstart")
        for file in sorted(os.listdir(self.lab.config_dir)):
            with open(f"{self.lab.config_dir}/{file}", encoding="utf-8") as text:
                for thing in yaml.safe_load_all(text):
                    if thing and thing["kind"] == "Service" and thing["spec"].get("clusterIPs"):
                        self.vips[thing["metadata"]["name"]] = thing["spec"]["clusterIPs"]
        say("[4/6] nginx, PostgreSQL, redis, a mail server and iperf3: waiting until they listen")
        pod = self.lab.pod
        for name in ("nginx-1", "nginx-2"):
            self.servers[name] = programs.nginx(pod(name), 8080, {"big": os.urandom(BIG)})
        self.servers["postgres"] = programs.postgres(pod("postgres"))
        self.servers["redis"] = programs.redis(pod("redis"))
        self.servers["smtp"] = programs.smtp(pod("smtp"), 2525)
        self.servers["iperf3"] = programs.iperf_server(pod("iperf3"))

    def start(self):
        say("[5/6] certificate authority, and warden and proxy on each node: waiting until both nodes are ready")
        self.lab.start()

    # Clients; each returns what it got as text, or raises when it was refused.

    def curl(self, service="nginx", path="/", six=False, pod="curl"):
        host = self.vips[service][1 if six else 0]
        return self.lab.pod(pod).run(
            ["curl", "-sSf", "-m", "5", f"http://{f'[{host}]' if six else host}{path}"], text=False).stdout

    def psql(self, pod="psql", six=False):
        host = self.vips["postgres"][1 if six else 0]
        query = "select inet_client_addr(), 'marker-of-the-query'"
        return self.lab.pod(pod).run(["psql", "-h", host, "-U", "postgres", "-Atc", query],
                                     env={"PGCONNECT_TIMEOUT": "5"}).stdout

    def redis(self, *words, pod="redis-cli", six=False):
        host = self.vips["redis"][1 if six else 0]
        answer = self.lab.pod(pod).run(["timeout", "5", "redis-cli", "-h", host, *words]).stdout
        if answer.startswith("Error") or not answer.strip():
            raise RuntimeError(answer)
        return answer

    def mail(self, six=False):
        programs.send_mail(self.lab.pod("mailer"), self.vips["smtp"][1 if six else 0], MAIL)

    def iperf(self, size="16M", six=False):
        return programs.iperf(self.lab.pod("iperf3-client"), self.vips["iperf3"][1 if six else 0], size)

    def refused(self, client, *words, **options):
        """True when the client is refused."""
        try:
            client(*words, **options)
        except RuntimeError:
            return True
        return False

    def edit(self, file, old, new):
        """Edits a manifest as a person would; fails when the text to change is not there."""
        with open(f"{self.lab.config_dir}/{file}", encoding="utf-8") as text:
            content = text.read()
        if old not in content:
            raise RuntimeError(f"{file} does not say {old!r} any more")
        self.lab.write(file, content.replace(old, new))


def say(text):
    print(text, flush=True)


# Judging ------------------------------------------------------------------------------------------------------------


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


# Showing ------------------------------------------------------------------------------------------------------------


class Table:
    """What the agents' access logs and open connections say, added up per pair, port and path."""

    def __init__(self, lab):
        self.lab = lab
        self.read = {node.name: 0 for node in lab.nodes}
        self.ended = {}  # key -> [count, bytes]
        self.denied = OrderedDict()  # (source, destination, reason) -> count

    @staticmethod
    def key(source, destination, port, tls, path):
        return source, destination, port, tls or "plaintext", path

    def update(self):
        for node in self.lab.nodes:
            with open(node.agent.log, encoding="utf-8", errors="replace") as log:
                log.seek(self.read[node.name])
                for line in log:
                    if not line.endswith("\n"):
                        break
                    self.read[node.name] += len(line.encode())
                    if line.startswith('{"start_time"'):
                        self.add(json.loads(line))

    def add(self, line):
        source, destination = (self.end(line, side) for side in ("src", "dst"))
        port = line["dst.addr"].rpartition(":")[2]
        reason = line.get("connection_termination_details") or ""
        if reason.startswith(("POLICY", "STRICT")):
            at = (source, destination, port, reason)
            self.denied[at] = self.denied.get(at, 0) + 1
            self.denied.move_to_end(at)
        elif line["direction"] == "outbound" or line["path_kind"] == "plaintext":  # one end's word is enough
            tls = f"{line['tls_version']} {line['tls_cipher']}" if line.get("tls_version") else None
            entry = self.ended.setdefault(self.key(source, destination, port, tls, line["path_kind"]), [0, 0])
            entry[0] += 1
            entry[1] += line["bytes_sent"] + line["bytes_recv"]

    @staticmethod
    def end(line, side):
        """The identity of one end; without one, the pod in brackets, or the address."""
        if identity := line.get(f"{side}.identity"):
            return short(identity)
        workload = line.get(f"{side}.workload")
        return f"({line[f'{side}.namespace']}/{workload})" if workload else line[f"{side}.addr"].rpartition(":")[0]

    def open_now(self):
        """The connections that are open: key -> [count, bytes]."""
        found = {}
        for node in self.lab.nodes:
            with contextlib.suppress(OSError, ValueError, RuntimeError):
                for row in node.ctl("get", "connections", "-o", "json", timeout=5).get("items", []):
                    if row["direction"] == "inbound" and row["path"] != "plaintext":
                        continue
                    ends = [self.row_end(row[end]) for end in ("source", "destination")]
                    tls = f"{row['tls']['version']} {row['tls']['cipher']}" if row.get("tls") else None
                    at = self.key(*ends, str(row["destination"]["port"]), tls, row["path"])
                    entry = found.setdefault(at, [0, 0])
                    entry[0] += 1
                    entry[1] += row["bytes_sent"] + row["bytes_received"]
        return found

    @staticmethod
    def row_end(end):
        if end.get("identity"):
            return short(end["identity"])
        return f"({end['namespace']}/{end['workload']})" if end.get("workload") else end["address"].rpartition(":")[0]

    def lines(self):
        self.update()
        opened = self.open_now()
        rows = [("FROM", "TO", "PORT", "PROTECTION", "PATH", "BYTES", "OPEN/TOTAL")]
        for at in sorted({*self.ended, *opened}):
            count, size = self.ended.get(at, (0, 0))
            now, more = opened.get(at, (0, 0))
            rows.append((*at, f"{size + more:,}", f"{now}/{count + now}"))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        yield from ("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
        if self.denied:
            yield ""
            yield "DENIED"
            for at, count in list(self.denied.items())[-6:]:
                yield f"{at[0]} -> {at[1]}:{at[2]}  {at[3]}  {count} times"


def short(identity):
    """spiffe://cluster.local/ns/shop/sa/curl as shop/curl."""
    parts = identity.split("/")
    return f"{parts[4]}/{parts[6]}" if identity.startswith("spiffe://") and len(parts) == 7 else identity


def keep_busy(quick):
    """Clients that go on by themselves, as programs in pods do."""
    vip = {name: ips[0] for name, ips in quick.vips.items()}
    for pod, pause, command in (
            ("curl", 0.5, f"curl -s -o /dev/null http://{vip['nginx']}/big"),
            ("psql", 2, f"psql -h {vip['postgres']} -U postgres -Atc 'select 1'"),
            ("redis-cli", 1, f"redis-cli -h {vip['redis']} incr visits"),
            ("mailer", 5, f"timeout 3 redis-cli -h {vip['redis']} ping"),
            ("intruder", 2, f"curl -s -m 2 -o /dev/null http://{quick.lab.pod('nginx-2').ipv4}:8080/"),
            ("iperf3-client", 10, f"iperf3 -c {vip['iperf3']} -n 8M")):
        quick.lab.pod(pod).spawn(["sh", "-c", f"while :; do {command}; sleep {pause}; done"], log="/dev/null")
    quick.lab.pod("mailer").spawn(["sh", "-c", f"while :; do printf 'To: b\\n\\nhi\\n' | curl -s smtp://{vip['smtp']}:25/lab "
                                   "--mail-from a@example.com --mail-rcpt b@example.com -T -; sleep 3; done"],
                                  log="/dev/null")


def advice(quick):
    lab = quick.lab
    config = lab.config_dir
    offered = f"{lab.dir}/deny-curl.yaml"
    with open(offered, "w", encoding="utf-8") as out:
        out.write(DENY_CURL)
    yield f"manifests  {config}   (edit them; changes are in force within a second)"
    for node in lab.nodes:
        yield f"metrics    nsenter --net={labs.netns.path_of(node.netns)} curl -s http://127.0.0.1:15020/metrics   ({node.name})"
    yield f"status     {lab.binary('meshctl')} --run-dir {lab.dir}/run status"
    yield "try"
    yield f"  make the namespace STRICT:  sed -i 's/mode: PERMISSIVE/mode: STRICT/' {config}/40-policies.yaml"
    yield f"  deny one client:            cp {offered} {config}/"
    yield f"  curl from a pod:            {ROOT}/tests/support/lab.py exec curl curl -s http://{quick.vips['nginx'][0]}/"
    yield "Ctrl-C ends it and removes every trace."


def show(quick):
    say("[6/6] traffic: the table is live")
    keep_busy(quick)
    table, hints = Table(quick.lab), list(advice(quick))
    terminal = sys.stdout.isatty()
    while True:
        for node in quick.lab.nodes:
            if not node.agent.running:
                raise RuntimeError(f"the agent of {node.name} ended:\n{node.agent.output()[-3000:]}")
        width = shutil.get_terminal_size((200, 50)).columns
        lines = [*table.lines(), "", *hints]
        print(("\x1b[H\x1b[2J" if terminal else "\n") + "\n".join(line[:width] if line not in hints else line
                                                                  for line in lines), flush=True)
        time.sleep(1)


def main():
    parser = argparse.ArgumentParser(prog="scripts/quickstart", description=__doc__.splitlines()[0])
    parser.add_argument("--once", action="store_true", help="judge each claim without a terminal and exit")
    once = parser.parse_args().once

    def interrupted(*_):
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    failed = []
    run_id = None
    try:
        with labs.Lab() as lab:
            run_id = lab.run_id
            quick = Quickstart(lab)
            quick.make()
            judge = Judge(quick)
            if once:
                judge.before()
            quick.start()
            if once:
                say("[6/6] the claims, each judged from outside of the mesh")
                judge.after()
                failed = judge.failed
            else:
                show(quick)
    except KeyboardInterrupt:
        say("\nstopping")
    left = labs.leftovers(run_id) if run_id else []
    if once:
        say(f"  {'FAILED' if left else 'ok    '}  nothing is left behind" + "".join(f"\n          {line}" for line in left))
        failed += ["nothing is left behind"] if left else []
        say(f"{len(failed)} claims failed: {'; '.join(failed)}" if failed else "every claim holds")
    return 1 if failed or left else 0


if __name__ == "__main__":
    sys.exit(main())
