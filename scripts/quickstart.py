"""The story of scripts/quickstart: what stands in examples/quickstart comes alive, and is shown or judged.

The judgements stand in quickstart_judge.py.
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
import yaml  # noqa: E402
from quickstart_judge import BIG, DENY_CURL, Judge, say  # noqa: E402

MAIL = "marker-of-the-mail\n"


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
