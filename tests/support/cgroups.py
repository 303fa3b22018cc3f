"""The cgroup2 tree of a lab: finding the mount, making groups, killing and removing whole subtrees."""

import contextlib
import os

from waiting import wait_for


def mount_point():
    """Where cgroup2 is mounted: /sys/fs/cgroup on a unified host, a folder below it on a hybrid one."""
    with open("/proc/mounts", encoding="utf-8") as mounts:
        for line in mounts:
            _, path, kind, *_ = line.split()
            if kind == "cgroup2":
                return path
    raise RuntimeError("no cgroup2 file system is mounted: mount -t cgroup2 none /sys/fs/cgroup")


def is_hybrid():
    """True where cgroup v1 hierarchies exist beside cgroup2."""
    with open("/proc/mounts", encoding="utf-8") as mounts:
        return any(line.split()[2] == "cgroup" for line in mounts)


def create(path):
    os.makedirs(path, exist_ok=True)
    return path


def members(path):
    """Process ids in the group and below it."""
    found = []
    for folder, _, _ in os.walk(path):
        with contextlib.suppress(OSError), open(f"{folder}/cgroup.procs", encoding="ascii") as procs:
            found += [int(line) for line in procs]
    return found


def of(pid):
    """The group that the process is in."""
    with open(f"/proc/{pid}/cgroup", encoding="ascii") as lines:
        return mount_point() + next(line.rstrip("\n")[3:] for line in lines if line.startswith("0::"))


@contextlib.contextmanager
def frozen(path):
    """Within the block nothing in the group runs, what joins it neither."""
    def freeze(value):
        with open(f"{path}/cgroup.freeze", "w", encoding="ascii") as switch:
            switch.write(value)

    freeze("1")
    try:
        yield
    finally:
        freeze("0")


def kill(path):
    """Kills every process of the subtree and waits until it is empty."""
    with contextlib.suppress(FileNotFoundError):
        with open(f"{path}/cgroup.kill", "w", encoding="ascii") as switch:
            switch.write("1")
        wait_for(lambda: not members(path), 10, f"no process in {path}")


def remove(path):
    """Removes the subtree, innermost first. It must be empty of processes."""
    for folder, _, _ in os.walk(path, topdown=False):

        def gone(folder=folder):
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(folder)
            return True

        wait_for(gone, 5, f"removal of {folder}", ignore=(OSError,))
