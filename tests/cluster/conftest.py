"""The cluster of the tier: three nodes, made once, gone at the end whatever ends this process."""

import contextlib
import os
import subprocess

import pytest
from minicluster import mesh as meshes
from minicluster.cluster import Cluster, default_cgroup
from minicluster.plan import Plan

OPEN = []


@contextlib.contextmanager
def opened(name, **plan):
    """A cluster whose logs are part of the report of a test that fails."""
    mode = int(os.environ.get("NODEMESH_CLUSTER_CGROUP") or default_cgroup())
    with Cluster.up(Plan(name, **{"cgroup": mode, **plan}), owned=True) as made:
        OPEN.append(made)
        yield made
        OPEN.remove(made)


@pytest.fixture(scope="module")
def ipv6_cluster():
    """Two nodes that know no IPv4, and of cgroups v2 alone, as nodes in production."""
    with opened(f"ipv6-{os.getpid()}", nodes=2, families=(6,), cgroup=2) as made:
        yield made


@pytest.fixture(scope="session")
def cluster():
    """Three dual-stack nodes, shared by all tests: a test keeps to a namespace of its own and leaves the nodes on.
    NODEMESH_CLUSTER_CGROUP=2 gives the nodes cgroup2 alone; NODEMESH_CLUSTER names one that is up already, and stays.
    What agents ask of the API server is in its audit log."""
    if name := os.environ.get("NODEMESH_CLUSTER"):
        yield Cluster(name)
        return
    with opened(f"test-{os.getpid()}", network_policy=True, audit=meshes.AGENT) as made:
        yield made


@pytest.fixture(scope="session")
def chart(tmp_path_factory):
    """The Helm chart as a file."""
    return meshes.write_chart(tmp_path_factory.mktemp("chart"))


@pytest.fixture(scope="session")
def image(tmp_path_factory):
    """The nodemesh image of the build under test."""
    return meshes.write_image(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="session")
def denying_program(tmp_path_factory):
    """A BPF object for connect4 that refuses every connection."""
    folder = tmp_path_factory.mktemp("bpf")
    (folder / "deny.c").write_text('__attribute__((section("cgroup/connect4"))) int deny(void *context) { return 0; }\n'
                                   '__attribute__((section("license"))) char granted[] = "GPL";\n', encoding="utf-8")
    subprocess.run(["clang-19", "-target", "bpf", "-O2", "-c", folder / "deny.c", "-o", folder / "deny.o"], check=True)
    return folder / "deny.o"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if report.failed and call.when in ("setup", "call"):
        for made in OPEN:
            report.sections.append((f"cluster {made.plan.name}", made.logs()))
