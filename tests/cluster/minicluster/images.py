"""The images of the cluster, written without a registry or Docker into the cache; see packaging/.

pause, coredns, echo and istiod are one static program each; tools has ordinary programs from this machine's Debian packages:
curl, nginx, python3, ip, ss, tcpdump, and busybox for a shell. Pods name them localhost/NAME:1.
"""

import hashlib
import json
import os
import subprocess
import sys

from minicluster import binaries
from minicluster.plan import CACHE, locked_cache

sys.path.append(f"{binaries.ROOT}/packaging")
import oci
from rootfs import Rootfs

FOLDER = f"{CACHE}/images"
SOURCES = f"{os.path.dirname(binaries.HERE)}/images"
TOOLS = ("curl", "nginx", "python3.11", "ip", "ss", "tcpdump", "openssl")
PYTHON = ("libpython3.11-minimal", "libpython3.11-stdlib")
NGINX = """daemon off;
user root;
error_log /dev/stderr;
pid /tmp/nginx.pid;
events {}
http {
  access_log /dev/stdout;
  client_body_temp_path /tmp/body; proxy_temp_path /tmp/proxy; fastcgi_temp_path /tmp/fastcgi;
  uwsgi_temp_path /tmp/uwsgi; scgi_temp_path /tmp/scgi;
  server { listen 80; listen [::]:80; location / { return 200 "$hostname sees $remote_addr\\n"; } }
}
"""


def _which(name):
    for folder in ("/usr/bin", "/usr/sbin", "/bin", "/sbin"):
        if os.path.exists(f"{folder}/{name}"):
            return f"{folder}/{name}"
    raise RuntimeError(f"no {name} on this machine: run scripts/install-packages run cluster")


def _static(name, source, user=None):
    rootfs = Rootfs()
    rootfs.file(f"/{name}", source, 0o755)
    oci.write(f"{FOLDER}/{name}.tar", f"localhost/{name}:1", rootfs, entrypoint=[f"/{name}"], user=user)


def _pause():
    program = f"{FOLDER}/pause"
    subprocess.run(["clang-19", "-O2", "-static", "-o", program, f"{SOURCES}/pause.c"], check=True)
    _static("pause", program)
    os.unlink(program)


def _tools():
    rootfs = Rootfs()
    rootfs.user("nodemesh", 65532)
    for name in TOOLS:
        rootfs.program(_which(name))
    for name in PYTHON:
        rootfs.package(name)
    rootfs.link("/usr/bin/python3", "python3.11")
    rootfs.program(_which("busybox"))
    applets = subprocess.run(["busybox", "--list"], capture_output=True, text=True, check=True).stdout.split()
    for applet in applets:
        if f"/usr/bin/{applet}" not in rootfs.entries and f"/usr/sbin/{applet}" not in rootfs.entries:
            rootfs.link(f"/usr/bin/{applet}", "busybox")
    rootfs.text("/etc/nginx/nginx.conf", NGINX)
    rootfs.folder("/var/lib/nginx")
    rootfs.folder("/var/log/nginx")
    oci.write(f"{FOLDER}/tools.tar", "localhost/tools:1", rootfs, command=["/usr/bin/sleep", "2147483647"])


MAKERS = {
    "pause": _pause,
    "coredns": lambda: _static("coredns", f"{binaries.BIN}/coredns"),
    "echo": lambda: _static("echo", f"{binaries.BIN}/echo", "65532:65532"),
    "tools": _tools,
    "istiod": lambda: _static("istiod", f"{binaries.BIN}/pilot-discovery", "1337:1337"),
}
PROGRAMS = {"coredns": "coredns", "echo": "echo", "istiod": "pilot-discovery"}  # what is in them
OF_EVERY_CLUSTER = tuple(name for name in MAKERS if name != "istiod")


def _stamp(name):
    """Changes with what the image is made of: our scripts, its program, the versions of all Debian packages."""
    digest = hashlib.sha256(name.encode())
    paths = [__file__, oci.__file__, sys.modules["rootfs"].__file__, f"{SOURCES}/pause.c"]
    for path in paths + ([f"{binaries.BIN}/{PROGRAMS[name]}"] if name in PROGRAMS else []):
        with open(path, "rb") as source:
            digest.update(source.read())
    if name == "tools":
        with open("/var/lib/dpkg/status", "rb") as source:
            digest.update(source.read())
    return digest.hexdigest()


def build(say=print, names=OF_EVERY_CLUSTER):
    """Writes the images that are missing or were made of something else. Needs the programs of binaries.build()."""
    os.makedirs(FOLDER, exist_ok=True)
    with locked_cache("images"):
        stamps_path = f"{FOLDER}/stamps.json"
        stamps = {}
        if os.path.exists(stamps_path):
            with open(stamps_path, encoding="utf-8") as source:
                stamps = json.load(source)
        for name in names:
            stamp = _stamp(name)
            if stamps.get(name) == stamp and os.path.exists(f"{FOLDER}/{name}.tar"):
                continue
            MAKERS[name]()
            say(f"image localhost/{name}:1 ({os.stat(f'{FOLDER}/{name}.tar').st_size >> 20} MiB)")
            stamps[name] = stamp
            with open(stamps_path, "w", encoding="utf-8") as out:
                json.dump(stamps, out)
