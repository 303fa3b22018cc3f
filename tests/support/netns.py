"""Network namespaces: making them, configuring links in them, and entering them.

A process enters with setns(2) between fork and exec. `ip netns exec` is not used: it remounts /sys, and a
program started that way no longer sees the cgroup mount.
"""

import contextlib
import ctypes
import os
import socket
import subprocess

CLONE_NEWNET = 0x40000000
RUN_DIR = "/run/netns"

_libc = ctypes.CDLL(None, use_errno=True)


def setns(descriptor):
    """Moves the calling thread into the network namespace behind descriptor."""
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "setns")


def path_of(name):
    """name may also be the path of a namespace, as in /proc/PID/ns/net."""
    return os.path.join(RUN_DIR, name)


def create(name):
    subprocess.run(["ip", "netns", "add", name], check=True)


def delete(name):
    subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)


def names(prefix):
    """Names of the namespaces on this machine that start with prefix."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(name for name in os.listdir(RUN_DIR) if name.startswith(prefix))
    return []


def ip(name, commands, check=True):
    """Runs lines of `ip` commands in the namespace as one batch."""
    done = subprocess.run(["ip", "-n", name, "-batch", "-"], input=commands, text=True, capture_output=True)
    if check and done.returncode != 0:
        raise RuntimeError(f"ip in {name}: {done.stderr.strip()}\n{commands}")


def sysctl(name, settings):
    """Sets kernel settings (a dict) in the namespace."""
    words = [f"{key}={value}" for key, value in settings.items()]
    subprocess.run(["nsenter", f"--net={path_of(name)}", "sysctl", "-qw", *words], check=True)


@contextlib.contextmanager
def entered(name):
    """The calling thread is in the namespace for the duration of the block. Sockets made in it stay there."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    there = os.open(path_of(name), os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(there)
        try:
            yield
        finally:
            setns(home)
    finally:
        os.close(there)
        os.close(home)


def connect(name, address, timeout=5.0):
    """A TCP connection to (host, port), made inside the namespace but from this process' own cgroup."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with entered(name):
        sock = socket.socket(family, socket.SOCK_STREAM)
    sock.settimeout(timeout)
    try:
        sock.connect(address)
    except OSError:
        sock.close()
        raise
    return sock
