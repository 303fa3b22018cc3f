"""CPU and memory of a set of processes, and what else the machine did meanwhile.

CPU of a process is the run time of all its threads (/proc/PID/task/*/schedstat): nanoseconds, softirq work done in its
context included. The proxies' core is watched independently: by the time it was not idle (/proc/stat).
"""

import contextlib
import ctypes
import glob
import os
import time

PROXY_CPU, LOAD_CPU = 1, 0
_TICK = os.sysconf("SC_CLK_TCK")
_CPUACCT = "/sys/fs/cgroup/cpuacct"


def run_time(pids):
    """Seconds that the processes' threads have run so far."""
    total = 0
    for pid in pids:
        for path in glob.glob(f"/proc/{pid}/task/*/schedstat"):
            with contextlib.suppress(OSError), open(path, encoding="ascii") as stat:
                total += int(stat.read().split()[0])
    return total / 1e9


def _idle():
    """Per CPU: (idle, stolen) seconds since boot. The kernel counts idle time exactly, busy time only by samples."""
    found = []
    with open("/proc/stat", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("cpu") and line[3].isdigit():
                words = [int(word) / _TICK for word in line.split()[1:9]]
                found.append((words[3] + words[4], words[7]))
    return found


def _softirq_daemon(cpu):
    """Process id of ksoftirqd on a CPU: work that the proxies' packets cause and that no proxy is charged with."""
    for path in glob.glob("/proc/[0-9]*/comm"):
        with contextlib.suppress(OSError), open(path, encoding="ascii") as comm:
            if comm.read().strip() == f"ksoftirqd/{cpu}":
                return [int(path.split("/")[2])]
    return []


class Watch:
    """Knows this program and all it starts as a group, where cgroup v1's cpuacct is there to tell (it has figures
    per CPU; cgroup2 has none). Without it, the cross-check is only as good as the machine is idle."""

    def __init__(self):
        self.group = None
        self._softirq = _softirq_daemon(PROXY_CPU)
        if os.path.exists(f"{_CPUACCT}/cpuacct.usage_percpu"):
            for old in glob.glob(f"{_CPUACCT}/nodemesh-bench-*"):
                with contextlib.suppress(OSError):
                    os.rmdir(old)  # fails, rightly, while it has processes
            self.group = f"{_CPUACCT}/nodemesh-bench-{os.getpid()}"
            os.mkdir(self.group)
            self._enter(self.group)

    def close(self):
        if self.group:
            self._enter(_CPUACCT)
            with contextlib.suppress(OSError):
                os.rmdir(self.group)
            self.group = None

    @staticmethod
    def _enter(group):
        with open(f"{group}/cgroup.procs", "w", encoding="ascii") as procs:
            procs.write(str(os.getpid()))

    @staticmethod
    def _per_cpu(group):
        with open(f"{group}/cpuacct.usage_percpu", encoding="ascii") as usage:
            return [int(word) / 1e9 for word in usage.read().split()]

    def snapshot(self, pids):
        """A point in time; the difference of two is what between() reports."""
        everything = mine = None
        if self.group:
            everything, mine = self._per_cpu(_CPUACCT), self._per_cpu(self.group)
        return {"at": time.monotonic(), "proxies": run_time(pids), "idle": _idle(), "all": everything, "mine": mine,
                "softirqd": run_time(self._softirq)}

    @staticmethod
    def between(one, two):
        """CPU seconds between two snapshots: proxies; the proxies' core as the machine saw it, less other programs;
        by how much that differs; other programs' CPU on all cores per second."""
        seconds = two["at"] - one["at"]
        idle = [after[0] - before[0] for before, after in zip(one["idle"], two["idle"])]
        stolen = [after[1] - before[1] for before, after in zip(one["idle"], two["idle"])]
        proxies, softirqd = two["proxies"] - one["proxies"], two["softirqd"] - one["softirqd"]
        others = [0.0 for _ in idle]
        if one["all"]:
            others = [(after - before) - (own_after - own_before) for before, after, own_before, own_after
                      in zip(one["all"], two["all"], one["mine"], two["mine"])]
        core = seconds - idle[PROXY_CPU] - stolen[PROXY_CPU] - max(0.0, others[PROXY_CPU] - softirqd)
        return {"seconds": seconds, "cpu": proxies, "core": core,
                "disagreement": core / proxies - 1 if proxies > 0.2 else None,
                "other": sum(others) / seconds, "steal": sum(stolen) / seconds, "busy": proxies / seconds}


def rss(pid):
    """(resident, proportional) KiB of a process."""
    found = {}
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as lines:
        for line in lines:
            words = line.split()
            if words[0] in ("Rss:", "Pss:"):
                found[words[0]] = int(words[1])
    return found["Rss:"], found["Pss:"]


@contextlib.contextmanager
def bpf_statistics():
    """The kernel counts the run time of BPF programs while the block runs; the descriptor that asks for it dies with
    this process, so the switch cannot stay on."""
    libc = ctypes.CDLL(None, use_errno=True)
    attributes = ctypes.create_string_buffer(128)  # union bpf_attr, enable_stats.type = BPF_STATS_RUN_TIME = 0
    number = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
    descriptor = libc.syscall(number, 32, attributes, 128)  # bpf(BPF_ENABLE_STATS)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "bpf(BPF_ENABLE_STATS): needs root and Linux 5.8")
    try:
        yield
    finally:
        os.close(descriptor)
