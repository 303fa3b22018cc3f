"""The command line of scripts/cluster."""

import argparse
import os
import sys
import time

import netns
from minicluster.cluster import Cluster, default_cgroup, names
from minicluster.plan import CACHE, MAX_NODES, Plan

FAMILIES = {"dual": (4, 6), "ipv4": (4,), "ipv6": (6,)}
DESCRIPTION = f"""A Kubernetes cluster of several nodes on this machine, without Docker, registry or changes to the machine: each node
is a tree of namespaces with its own containerd, kubelet, kube-proxy, cgroup root and BPF file system, and the whole has
a network of its own. Needs Debian 12 and root. The first `up` builds Kubernetes from its Go modules, which takes about
ten minutes on two cores; what it builds stays in {CACHE}
(NODEMESH_CLUSTER_CACHE sets another folder). All else is below /dev/shm and gone after `down`."""


def _words(options):
    """The command after the options, with or without the -- before it; a shell where there is none."""
    return options.words[1:] if options.words[:1] == ["--"] else options.words


def _enter(cluster, command):
    """Becomes a command on the machine beside the nodes."""
    os.environ.update(cluster.environment())
    descriptor = os.open(cluster.netns, os.O_RDONLY | os.O_CLOEXEC)
    netns.setns(descriptor)
    os.execvp(command[0], command)


def _up(options):
    started = time.monotonic()
    cluster = Cluster.up(Plan(options.name, options.nodes, options.cgroup or default_cgroup(), FAMILIES[options.families],
                              options.network_policy))
    print(f"up after {time.monotonic() - started:.0f} s: {cluster.plan.nodes} nodes; files and logs: {cluster.plan.state}\n"
          "next: scripts/cluster kubectl get pods -A -o wide; scripts/cluster down")


def _down(options):
    if options.name not in names():
        print(f"no cluster named {options.name}")
        return
    started = time.monotonic()
    try:
        Cluster.sweep(options.name)  # a cluster whose keeper was killed
    except RuntimeError:
        Cluster(options.name).down()
    print(f"down after {time.monotonic() - started:.1f} s")


def _status(options):
    for name in names() or ["no cluster is up"]:
        print(name)


def _load_image(options):
    cluster = Cluster(options.name)
    for path in options.tar:
        cluster.load_image(path)
        print(f"{path} is on {cluster.plan.nodes} nodes")


def _node(options):
    command = Cluster(options.name).node(options.number).inside(_words(options) or ["/bin/bash"])
    os.execvp(command[0], command)


def _restart_node(options):
    started = time.monotonic()
    node = Cluster(options.name).node(options.number)
    node.restart(options.off)
    print(f"{node.name} is Ready again after {time.monotonic() - started:.1f} s")


def parser():
    made = argparse.ArgumentParser(prog="scripts/cluster", description=DESCRIPTION,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--name", default="default", help="which cluster; several can be up (default: %(default)s)")
    commands = made.add_subparsers(required=True, metavar="COMMAND")

    def command(name, action, text):
        one = commands.add_parser(name, help=text, description=text)
        one.set_defaults(action=action)
        return one

    up = command("up", _up, "make the cluster; returns when nodes and DNS are ready")
    up.add_argument("--nodes", type=int, default=3, help=f"1 to {MAX_NODES} (default: %(default)s)")
    up.add_argument("--cgroup", type=int, choices=(1, 2), help="1: cgroup v1 with cgroup2 beside it; 2: cgroup2 alone, as on a "
                    "modern host, without limits where the machine's controllers are in v1 (default: 1 where there is v1)")
    up.add_argument("--families", choices=FAMILIES, default="dual", help="IP families (default: %(default)s)")
    up.add_argument("--network-policy", action="store_true", help="enforce NetworkPolicy on the nodes, as many CNI plugins do")
    command("down", _down, "end the cluster and remove every trace")
    command("status", _status, "name the clusters that are up")
    for program in ("kubectl", "helm"):
        one = command(program, lambda options, program=program: _enter(Cluster(options.name), [program, *options.words]),
                      f"run {program} against the cluster")
        one.add_argument("words", nargs=argparse.REMAINDER)
    one = command("exec", lambda options: _enter(Cluster(options.name), _words(options) or ["/bin/bash"]),
                  "run a command, or a shell, beside the nodes: there Services and pods can be reached")
    one.add_argument("words", nargs=argparse.REMAINDER)
    one = command("load-image", _load_image, "import image tar files (OCI or Docker) on every node")
    one.add_argument("tar", nargs="+")
    one = command("node", _node, "run a command, or a shell, on a node")
    one.add_argument("number", type=int)
    one.add_argument("words", nargs=argparse.REMAINDER)
    one = command("restart-node", _restart_node, "a power failure and boot of a node; waits until it is Ready again")
    one.add_argument("number", type=int)
    one.add_argument("--off", type=float, default=0, metavar="SECONDS", help="how long the power is off")
    return made


def main():
    options = parser().parse_args()
    if os.geteuid() != 0:
        sys.exit("scripts/cluster: a cluster makes namespaces, cgroups and mounts: run as root")
    try:
        options.action(options)
    except (RuntimeError, OSError) as error:
        sys.exit(f"scripts/cluster: {error}")


if __name__ == "__main__":
    main()
