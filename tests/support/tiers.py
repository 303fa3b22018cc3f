#!/usr/bin/python3
"""Builds and runs test tiers, adds up their counts, and ends with the line `N passed, N failed, N skipped`.

Called by scripts/test, which installs the packages first. Two builds serve all tiers: `release`, what people run, and
`fuzz`, which is the sanitised build (address, undefined) with the coverage hooks that the fuzzers need besides.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as xml
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.append(f"{ROOT}/tests/cluster")
RELEASE, SANITISED = f"{ROOT}/build/release", f"{ROOT}/build/fuzz"
FUZZ_SECONDS = 8
BUILDING = {"release": threading.Lock(), "fuzz": threading.Lock()}
KERNELS = ("6.1", "6.12")
SANITISER_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=1:abort_on_error=1:strict_string_checks=1:detect_stack_use_after_return=0",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
}


@dataclass
class Count:
    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __add__(self, other):
        return Count(self.passed + other.passed, self.failed + other.failed, self.skipped + other.skipped)


class Skipped(Exception):
    """The tier cannot run here; the text says why."""


def build(preset, priority=0):
    """Configures once and builds, or waits for the build that is under way; a failure fails the tier."""
    with BUILDING[preset]:
        _build(preset, priority)


def _build(preset, priority):
    folder = f"{ROOT}/build/{preset}"
    # So that a compiler cache serves every clone of the repository, wherever it lies.
    cache = {**os.environ, "CCACHE_BASEDIR": ROOT, "CCACHE_NOHASHDIR": "1"}
    if not os.path.exists(f"{folder}/build.ninja"):
        subprocess.run(["cmake", "--preset", preset], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["nice", "-n", str(priority), "cmake", "--build", folder, "--", "--quiet"], cwd=ROOT, check=True,
                   env=cache)


def build_meanwhile(make, *words):
    """Builds in the background, for tiers that come later: most tiers before them keep one core busy at most."""
    def work():
        with contextlib.suppress(subprocess.CalledProcessError, RuntimeError, OSError, ImportError):
            make(*words)  # where it fails, the tier that needs it builds again, and says so

    threading.Thread(target=work, daemon=True).start()


class Meanwhile:
    """A tier that needs nothing but a core, run beside the others."""

    def __init__(self, tier):
        self._outcome = None
        self._thread = threading.Thread(target=self._run, args=(tier,), daemon=True)
        self._thread.start()

    def _run(self, tier):
        self._outcome = run_tier(tier)

    def result(self):
        self._thread.join()
        return self._outcome


FAILURES = []  # said again at the end of the run, where even a short look at the log finds them


def note_failures(tier, output):
    """Takes the failed checks of a doctest binary out of what it printed."""
    case = ""
    for line in output.replace("\r", "").splitlines():
        if line.startswith(("TEST CASE:", "  Scenario:")):
            case = line.split(":", 1)[1].strip()
        elif "ERROR: " in line:
            FAILURES.append(f"{tier}: {case}: {line.strip()}")


def need_root():
    if os.geteuid() != 0:
        raise Skipped("it makes namespaces, cgroups and BPF programs: run as root")


SUMMARY = re.compile(r"test cases:\s*\d+ \|\s*(\d+) passed \|\s*(\d+) failed \|\s*(\d+) skipped")


def doctest(name, folder, env=None):
    """Runs one doctest binary and reads its closing line."""
    path = f"{folder}/tests/nodemesh_{name}_tests"
    done = subprocess.run([path], cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
                          env={**os.environ, **(env or {})})
    print(done.stdout, end="")
    note_failures(name, done.stdout)
    match = SUMMARY.search(done.stdout)
    if not match:
        print(f"{path} ended with {done.returncode} and without a summary")
        FAILURES.append(f"{name}: ended with {done.returncode} and without a summary; last: {done.stdout[-300:]}")
        return Count(failed=1)
    count = Count(*(int(number) for number in match.groups()))
    return count if done.returncode == 0 or count.failed else count + Count(failed=1)


def pytest(folder, build_dir, env=None, words=()):
    """Runs the pytest files of a tier; the counts come from its JUnit report, not from its prose."""
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        done = subprocess.run(
            ["/usr/bin/python3", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=5",
             f"--junitxml={report.name}", *words, f"{ROOT}/tests/{folder}"], cwd=f"{ROOT}/tests", check=False,
            env={**os.environ, "NODEMESH_BUILD_DIR": build_dir, "PYTHONDONTWRITEBYTECODE": "1",
                 "NODEMESH_TEST_TIME_FACTOR": "2", **(env or {})})
        try:
            root = xml.parse(report.name).getroot()
            for case in root.iter("testcase"):
                FAILURES.extend(f"{folder}: {case.get('classname')}::{case.get('name')}: {what.get('message')}"[:400]
                                for what in (*case.iter("failure"), *case.iter("error")))
            total = Count()
            for suite in root.iter("testsuite"):
                ran, bad = int(suite.get("tests")), int(suite.get("failures")) + int(suite.get("errors"))
                skipped = int(suite.get("skipped"))
                total += Count(max(0, ran - bad - skipped), bad, skipped)
        except xml.ParseError:
            total = Count()
    return total if done.returncode == 0 or total.failed else total + Count(failed=1)


def fuzz_one(path):
    """One fuzzer over its seed corpus and then for a few seconds; what it finds stays in build/fuzz/findings."""
    name = os.path.basename(path).removeprefix("fuzz_")
    findings = f"{SANITISED}/findings"
    os.makedirs(findings, exist_ok=True)
    with tempfile.TemporaryDirectory() as corpus:
        seeds = f"{ROOT}/tests/fuzz/corpus/{name}"
        if os.path.isdir(seeds):
            shutil.copytree(seeds, corpus, dirs_exist_ok=True)
        done = subprocess.run(["nice", path, f"-max_total_time={FUZZ_SECONDS}", "-timeout=10", "-rss_limit_mb=1024",
                               f"-artifact_prefix={findings}/{name}-", corpus], text=True, check=False,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, **SANITISER_OPTIONS})
    if done.returncode != 0:
        print(f"fuzz {name} failed:\n{done.stdout[-6000:]}")
        FAILURES.append(f"fuzz {name}: ended with {done.returncode}")
        return Count(failed=1)
    print(f"fuzz {name}: {done.stdout.strip().splitlines()[-1]}")
    return Count(passed=1)


def tier_lint():
    return Count(passed=1) if subprocess.run([f"{ROOT}/scripts/lint"], check=False).returncode == 0 else Count(failed=1)


def tier_unit():
    build("release")
    return doctest("unit", RELEASE)


def tier_golden():
    build("release")
    return doctest("golden", RELEASE)


def tier_bpf():
    need_root()
    build("release")
    return doctest("bpf", RELEASE)


def tier_kernels():
    """The bpf tier once more on Debian's other kernels, in QEMU. What it leaves out there by name is no skip."""
    build("release")
    if not all(os.path.exists(f"{ROOT}/build/qemu/{version}/boot") for version in KERNELS):
        subprocess.run(["apt-get", "update", "-qq"], check=False)  # the kernels are fetched by apt
    done = subprocess.run([f"{ROOT}/tests/bpf/qemu.sh", "--binary", f"{RELEASE}/tests/nodemesh_bpf_tests", *KERNELS],
                          cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    print(done.stdout, end="")
    if done.returncode == 77:
        raise Skipped(done.stdout.strip().splitlines()[-1])
    for version in KERNELS:
        with contextlib.suppress(OSError), open(f"{ROOT}/build/qemu/{version}.log", encoding="utf-8",
                                                errors="replace") as log:
            note_failures(f"kernel {version}", log.read())
    runs = SUMMARY.findall(done.stdout)
    count = sum((Count(int(passed), int(failed)) for passed, failed, _ in runs), Count())
    bad = done.returncode != 0 or len(runs) != len(KERNELS)
    return count + Count(failed=1) if bad and not count.failed else count


def tier_netns():
    need_root()
    build("release")
    return pytest("netns", RELEASE)


def tier_wire():
    need_root()
    build("release")
    return pytest("wire", RELEASE)


def tier_chart():
    """The Helm chart as rendered; Helm is built from its Go module."""
    from minicluster import binaries  # as below
    build("release")
    binaries.build(modules=("helm",))
    return pytest("chart", RELEASE)


def build_cluster():
    """Kubernetes and the rest from Go modules, and the images of the cluster: minutes when cold, then nothing to do."""
    from minicluster import binaries, images  # needs packages that other tiers do without
    binaries.build()
    images.build()


def build_cluster_and_istiod():
    """istiod comes last: one file of the tier needs it, and waits for it, while the others run."""
    from minicluster import binaries, images
    build_cluster()
    binaries.build(modules=("istiod",))
    images.build(names=("istiod",))


def tier_cluster():
    """A real cluster, see tests/cluster. Its programs were built in the background of the tiers before it."""
    need_root()
    from minicluster.cluster import default_cgroup, obstacles
    from minicluster.plan import Plan
    if reasons := obstacles(Plan(cgroup=default_cgroup())):
        raise Skipped("; ".join(reasons))
    build("release")
    build_cluster()
    return pytest("cluster", RELEASE)


def tier_fuzz():
    build("fuzz", 10)
    fuzzers = sorted(entry.path for entry in os.scandir(f"{SANITISED}/tests")
                     if entry.name.startswith("fuzz_") and entry.is_file() and os.access(entry.path, os.X_OK))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return sum(pool.map(fuzz_one, fuzzers), Count())


def tier_asan():
    """The unit, golden, namespace and wire tiers once more, on the sanitised build."""
    need_root()
    build("fuzz")
    slow = {**SANITISER_OPTIONS, "NODEMESH_TEST_TIME_FACTOR": "4", "NODEMESH_SANITISED": "1"}
    # A process in the proxy's sandbox cannot look for its leaks (that takes ptrace); the unit tests do.
    confined = {**slow, "ASAN_OPTIONS": slow["ASAN_OPTIONS"] + ":detect_leaks=0"}
    return (doctest("unit", SANITISED, slow) + doctest("golden", SANITISED, slow)
            + pytest("netns", SANITISED, confined) + pytest("wire", SANITISED, confined))


@contextlib.contextmanager
def room_for_watchers():
    """The kernel gives inotify instances back some time after their process has ended, and lets a user have 128 as it
    comes. Tests start and kill hundreds of processes that watch folders, so for the run it may be more."""
    path = "/proc/sys/fs/inotify/max_user_instances"
    with open(path, encoding="ascii") as limit:
        before = limit.read()
    if os.geteuid() != 0 or int(before) >= 1024:
        yield
        return
    try:
        _write(path, "1024")
        yield
    finally:
        _write(path, before)


def _write(path, text):
    with open(path, "w", encoding="ascii") as out:
        out.write(text)


TIERS = {"lint": tier_lint, "unit": tier_unit, "golden": tier_golden, "bpf": tier_bpf, "kernels": tier_kernels, "netns": tier_netns,
         "wire": tier_wire, "asan": tier_asan, "chart": tier_chart, "cluster": tier_cluster, "fuzz": tier_fuzz}

BY_NAME = {"chart", "cluster"}  # run only when asked for, as long as a case of the cluster tier fails now and then


def run_tier(name):
    """(what it counted, seconds)."""
    print(f"\n== {name}")
    started = time.monotonic()
    try:
        count = TIERS[name]()
    except Skipped as reason:
        print(f"SKIPPED {name}: {reason}")
        count = Count(skipped=1)
    except subprocess.CalledProcessError as error:
        print(f"{name}: {error}")
        count = Count(failed=1)
    return count, time.monotonic() - started


def main(names):
    sys.stdout.reconfigure(line_buffering=True)
    total, times, beside, begun = Count(), [], {}, time.monotonic()
    names = names or [name for name in TIERS if name not in BY_NAME]
    if "cluster" in names and os.geteuid() == 0:
        build_meanwhile(build_cluster_and_istiod)
    for name in names:
        count, seconds = beside[name].result() if name in beside else run_tier(name)
        if name == "unit" and "fuzz" in names:
            beside["fuzz"] = Meanwhile("fuzz")
        elif name == "unit" and "asan" in names:
            build_meanwhile(build, "fuzz", 10)
        total += count
        times.append(f"{name:8} {seconds:6.1f} s   {count.passed} passed, {count.failed} failed"
                     + (f", {count.skipped} skipped" if count.skipped else ""))
    print("\n" + "\n".join(times) + f"\n{'all':8} {time.monotonic() - begun:6.1f} s\n")
    for failure in FAILURES[:60]:
        print(f"failed: {failure}")
    print(f"{total.passed} passed, {total.failed} failed, {total.skipped} skipped")
    forbidden_skip = total.skipped and os.environ.get("CI") == "true"
    return 1 if total.failed or forbidden_skip or not total.passed else 0


if __name__ == "__main__":
    with room_for_watchers():
        sys.exit(main(sys.argv[1:]))
