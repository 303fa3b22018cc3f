"""The machine's cgroup hierarchies."""


def hierarchies():
    """(mount point, True for cgroup2) of each."""
    found = {}
    with open("/proc/mounts", encoding="utf-8") as mounts:
        for line in mounts:
            _, path, kind, *_ = line.split()
            if kind in ("cgroup", "cgroup2"):
                found[path] = kind == "cgroup2"
    return sorted(found.items())
