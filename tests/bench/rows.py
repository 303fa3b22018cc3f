"""What is measured: each row names its chains, how one cell of it is measured, and the ratios that it is judged by."""

import contextlib
import glob
import json
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from measure import bpf_statistics, rss

OURS, NEAR, PAIR = "ours", "ours same node", "ours second pair"
MTLS, FULL, PLAIN = "HAProxy mTLS", "HAProxy mTLS full", "HAProxy plain"
ENVOY, ENVOY_COLD = "Envoy HBONE", "Envoy HBONE cold"
IDLE_CONNECTIONS = 9500


@dataclass
class Row:
    """name: on the command line; unit: of a cell's value; cells: what is measured, in order; judged: (one, other) whose
    ratio has the targets, or one name whose value has them; also: further ratios to print; kind: "fresh" comes
    first and once, "crowd" last, with many pods."""

    name: str
    what: str
    unit: str
    cells: list
    measure: Callable
    judged: tuple
    must: float | None = None
    aim: float | None = None
    also: list = field(default_factory=list)
    kind: str = "steady"
    derive: Callable | None = None  # values of one round (dict by cell) -> further values by name
    plus: str = ""  # another row whose value of the same round, or median, is added to those of the same name


class Bench:
    """Measures cells: one stage, one watch, how long a cell lasts, and from when on others disturb."""

    def __init__(self, stage, watch, seconds, most_other):
        self.stage, self.watch, self.seconds, self.most_other = stage, watch, seconds, most_other
        self.around = contextlib.nullcontext  # entered for the time in which a cell is measured, e.g. by a profiler

    def cell(self, row, name):
        """One cell; a second time when other programs used the machine, then the quieter of the two. What goes wrong
        is the cell's result, so that one broken chain does not cost the rest of the run."""
        try:
            return self._cell(row, name)
        except (OSError, RuntimeError, ValueError, LookupError, AssertionError, subprocess.SubprocessError) as error:
            return {"failed": f"{type(error).__name__}: {error}"}

    def _cell(self, row, name):
        first = row.measure(self, name)
        if first.get("other", 0) <= self.most_other:
            return first
        second = row.measure(self, name)
        best = min(first, second, key=lambda cell: cell["other"])
        return {**best, "repeated": True}

    @contextlib.contextmanager
    def loaded(self, name, mode, connections, *words):
        load = self.stage.load(self.stage.chains[name], mode, connections, *words)
        try:
            yield load
        finally:
            load.close()

    def counted(self, name, work):
        """Runs work() and returns its dict with what Watch says of the time it took."""
        pids = self.stage.chains[name].pids()
        with self.around():
            before = self.watch.snapshot(pids)
            found = work()
            after = self.watch.snapshot(pids)
        return {**found, **self.watch.between(before, after)}


def _per(cell, count, scale=1e6):
    cell["value"] = cell["cpu"] / count * scale
    return cell


def exchange(connections, rate=0, even=False):
    def measure(bench, name):
        words = [bench.seconds, *([rate] if rate else []), *(["even"] if even else [])]
        with bench.loaded(name, "exchange", connections, *words) as load:
            cell = bench.counted(name, load.go)
        return _per(cell, cell["done"])
    return measure


def latency(bench, name):
    with bench.loaded(name, "exchange", 1, bench.seconds) as load:
        cell = bench.counted(name, load.go)
    return {**cell, "value": cell["p50"]}


def connections(bench, name):
    with bench.loaded(name, "connect", 32, bench.seconds) as load:
        cell = bench.counted(name, load.go)
    return _per(cell, cell["done"])


def bulk(streams):
    def measure(bench, name):
        chain = bench.stage.chains[name]
        cell = bench.counted(name, lambda: {"bytes": bench.stage.iperf(chain, streams, max(1, round(bench.seconds)))})
        cell["gbit"] = cell["bytes"] * 8e-9 / cell["seconds"]
        return _per(cell, cell["bytes"] / 1e9, 1)
    return measure


# A full handshake: a connection that needs a new tunnel, less one that does not; one at a time.
# Ours: a connection of each pair of pods that had a tunnel before and has none, or still has it (tunnels that short
# leave no session to resume); HAProxy: with a full handshake, and without TLS; Envoy: a connection for each stream,
# and pooled.

SINGLE = {"Envoy cold": ENVOY_COLD, "Envoy warm": ENVOY, "HAProxy full": FULL, "HAProxy no TLS": PLAIN}
COLD, WARM = "ours cold", "ours warm"
FLEETING = ("--", "--ping-interval-ms", "1500", "--tunnel-idle-ms", "1")  # a tunnel without streams goes at its next tick


def handshake(bench, name):
    if name in SINGLE:
        with bench.loaded(SINGLE[name], "connect", 1, bench.seconds) as load:
            cell = bench.counted(SINGLE[name], load.go)
        return _per(cell, cell["done"])
    bench.stage.restart_agents(FLEETING if name == COLD else ())
    with contextlib.ExitStack() as held:
        loads = [held.enter_context(load) for load in bench.stage.sweeps()]
        for load in loads:
            load.go()
        if name == COLD:
            bench.stage.wait_no_tunnels()
        before = _handshakes(bench)
        cell = bench.counted(OURS, lambda: {"done": sum(load.go()["done"] for load in loads)})
    cell["handshakes"] = (_handshakes(bench) - before) / cell["done"]
    if cell["handshakes"] != (name == COLD):
        raise RuntimeError(f"{cell['handshakes']:.2f} full handshakes per connection in \"{name}\"")
    return _per(cell, cell["done"])


def _handshakes(bench):
    """Full handshakes that the client's node has made as a client, by its metrics."""
    return bench.stage.node1.metrics().sum("nodemesh_tls_handshakes_total", side="client", result="ok", resumed="false")


def handshake_values(values):
    return {OURS: values[COLD] - values[WARM], ENVOY: values["Envoy cold"] - values["Envoy warm"],
            MTLS: values["HAProxy full"] - values["HAProxy no TLS"]}


# Memory: all that runs is started afresh for this row.

MEMORY = {OURS: lambda stage: stage.proxy_pids(), MTLS: lambda stage: stage.peer_pids("haproxy"),
          ENVOY: lambda stage: stage.peer_pids("envoy")}


def memory(bench, name):
    pids = MEMORY[name](bench.stage)
    fresh = [bench.stage.fresh[pid] for pid in pids]
    with contextlib.ExitStack() as held:
        # One pod may hold half of the descriptors (OVER_LIMIT), so ours come from two pods and go to two.
        for chain in (OURS, PAIR) if name == OURS else (name,):
            count = IDLE_CONNECTIONS // (2 if name == OURS else 1)
            held.enter_context(bench.loaded(chain, "hold", count))
        time.sleep(1)  # what a busy allocator gives back, it gives back now
        full = [rss(pid) for pid in pids]
    per = [(after[0] - before[0]) / IDLE_CONNECTIONS for before, after in zip(fresh, full)]
    return {"fresh_mb": [one[0] / 1024 for one in fresh], "fresh_pss_mb": [one[1] / 1024 for one in fresh],
            "idle_mb": [one[0] / 1024 for one in full], "kib_per_connection": per, "value": max(per)}


def fresh_memory(bench, name):
    found = [bench.stage.fresh[pid] for pid in MEMORY[name](bench.stage)]
    return {"fresh_mb": [one[0] / 1024 for one in found], "value": max(one[0] for one in found) / 1024}


# BPF: the kernel's own account of our programs' run time.


def _programs(stage):
    """Ids of the BPF programs of both nodes: those that the wardens hold, by themselves or through links."""
    ids = set()
    for node in stage.lab.nodes:
        for pid in node.agent_pids("nodemesh-warden"):
            for path in glob.glob(f"/proc/{pid}/fdinfo/*"):
                with contextlib.suppress(OSError), open(path, encoding="ascii", errors="replace") as facts:
                    ids |= {int(number) for number in re.findall(r"^prog_id:\s*(\d+)", facts.read(), re.MULTILINE)}
    return ids


def _run_times(ids):
    done = subprocess.run(["bpftool", "-j", "prog", "show"], capture_output=True, text=True, check=True)
    return {one["id"]: (one.get("name", "?"), one.get("run_time_ns", 0), one.get("run_cnt", 0))
            for one in json.loads(done.stdout) if one["id"] in ids}


def kernel_programs(bench, name):
    ids = _programs(bench.stage)
    with bpf_statistics(), bench.loaded(name, "connect", 32, bench.seconds) as load:
        before = _run_times(ids)
        cell = bench.counted(name, load.go)
        after = _run_times(ids)
    programs = {}
    for number, (title, time_ns, runs) in after.items():
        one = programs.setdefault(title, [0, 0])
        one[0] += (time_ns - before[number][1]) / cell["done"] / 1e3
        one[1] += (runs - before[number][2]) / cell["done"]
    cell["programs"] = {title: [round(us, 3), round(runs, 2)] for title, (us, runs) in sorted(programs.items())}
    cell["value"] = sum(us for us, _ in programs.values())
    return cell


PEERS, VERSUS = [OURS, MTLS, ENVOY], [(ENVOY, MTLS), (OURS, ENVOY)]
EXCHANGE, CONNECTION, BULK = "CPU µs/exchange", "CPU µs/connection", "CPU s/GB"
NEARER = "same node against two nodes: "
ROWS = [
    Row("exchange-c64", "1 KiB exchange on established connections, 64 clients", EXCHANGE, PEERS, exchange(64),
        (OURS, MTLS), 0.65, 0.5, VERSUS),
    Row("exchange-1k", "the same at 1,000 exchanges/s, 20 connections that ask together", EXCHANGE, PEERS,
        exchange(20, 1000), (OURS, MTLS), 0.9, 0.7, VERSUS),
    Row("exchange-1k-even", "the same, evenly one after the other", EXCHANGE, PEERS, exchange(20, 1000, True),
        (OURS, MTLS), also=VERSUS),
    Row("exchange-c1", "the same with 1 client, latency", "p50 µs", PEERS, latency, (OURS, MTLS), 1.05, 0.95, VERSUS),
    Row("connections", "new connection over a warm tunnel, one exchange each", CONNECTION, [OURS, PLAIN, ENVOY],
        connections, (OURS, PLAIN), 0.95, 0.75, [(ENVOY, PLAIN), (OURS, ENVOY)], plus="bpf"),
    Row("bulk-1", "bulk, one stream", BULK, PEERS, bulk(1), (OURS, MTLS), 0.75, 0.55, VERSUS),
    Row("bulk-4", "bulk, four streams", BULK, PEERS, bulk(4), (OURS, MTLS), 0.75, 0.55, VERSUS),
    Row("same-node-connections", NEARER + "new connections", CONNECTION, [NEAR, OURS], connections, (NEAR, OURS),
        0.6, 0.45, plus="bpf"),
    Row("same-node-bulk", NEARER + "bulk, one stream", BULK, [NEAR, OURS], bulk(1), (NEAR, OURS), 0.6, 0.45),
    Row("same-node-exchange", NEARER + "exchanges, 64 clients", EXCHANGE, [NEAR, OURS], exchange(64), (NEAR, OURS),
        0.6, 0.45),
    Row("bpf", "kernel programs, both nodes, per connection", "µs/connection", [OURS, NEAR], kernel_programs, (OURS,),
        8, 4),
    Row("memory-fresh", "memory of one process, fresh", "MB", PEERS, fresh_memory, (OURS,), 13, 10, kind="fresh"),
    Row("memory-idle", f"memory per idle connection, {IDLE_CONNECTIONS:,} of them", "KiB", PEERS, memory, (OURS,), 5, 3,
        kind="fresh"),
    Row("handshake", "full mTLS handshake, both sides", "CPU µs", [COLD, WARM, *SINGLE], handshake, (OURS, MTLS),
        0.48, 0.35, VERSUS, kind="crowd", derive=handshake_values),
]
