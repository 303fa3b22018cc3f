"""Builds Kubernetes, etcd, CoreDNS, Helm and istiod, and our own echo server, from Go modules into the cache.

Each folder of tests/cluster/go is a Go module that names its programs and pins what they are made of (go.mod, go.sum).
To change a version: edit go.mod there and run `go mod tidy`. helm, coredns and istiod keep to one version of every module
that two of them need (k8s.io/*, golang.org/x/*, grpc, protobuf, ...), so that it is compiled once: raise them together.
k8s.io/kubernetes is no ordinary dependency: its go.mod replaces its staging modules by folders of its own tree; each is
published as v0.X.Y beside v1.X.Y, so that replacing them by version does the same.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import time

from minicluster.plan import CACHE, locked_cache

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(HERE)))
MODULES = os.path.join(os.path.dirname(HERE), "go")
BIN = f"{CACHE}/bin"
PROGRAMS = {
    "kubernetes": ("kube-apiserver", "kubelet", "kubectl", "kube-controller-manager", "kube-proxy", "kube-scheduler"),
    "coredns": ("coredns",), "etcd": ("etcd",), "helm": ("helm",), "echo": ("echo",), "istiod": ("pilot-discovery",),
}
PACKAGES = {"etcd": "go.etcd.io/etcd/server/v3", "helm": "helm.sh/helm/v3/cmd/helm",
            "istiod": "istio.io/istio/pilot/cmd/pilot-discovery"}
OF_EVERY_CLUSTER = tuple(module for module in PROGRAMS if module != "istiod")
OLDEST_GO = (1, 26)


def go():
    """The path of a Go that is new enough: the machine's, or the one that scripts/install-packages puts into build/go."""
    for path in (shutil.which("go"), "/usr/local/go/bin/go", f"{ROOT}/build/go/bin/go"):
        if path and os.path.exists(path):
            done = subprocess.run([path, "env", "GOVERSION"], capture_output=True, text=True, check=False)
            found = re.match(r"go(\d+)\.(\d+)", done.stdout)
            if found and (int(found[1]), int(found[2])) >= OLDEST_GO:
                return path
    raise RuntimeError("no Go 1.26 or newer: run scripts/install-packages cluster")


def _flags(module):
    if module != "kubernetes":
        return "-s -w"
    with open(f"{MODULES}/{module}/go.mod", encoding="utf-8") as source:
        version = re.search(r"k8s\.io/kubernetes v(\d+)\.(\d+)\.\d+", source.read())
    variable = "-X k8s.io/component-base/version.git"  # helm and the API server's clients read what these say
    return (f"-s -w {variable}Version={version[0].split()[1]} {variable}Major={version[1]} {variable}Minor={version[2]} "
            f"{variable}TreeState=clean")


def _stamp(module):
    """Changes with everything that the programs are made of."""
    digest = hashlib.sha256(_flags(module).encode())
    for name in sorted(os.listdir(f"{MODULES}/{module}")):
        with open(f"{MODULES}/{module}/{name}", "rb") as source:
            digest.update(name.encode() + source.read())
    return digest.hexdigest()


def _build(module, say):
    packages = [PACKAGES[module]] if module in PACKAGES else ["."]
    if module == "kubernetes":
        packages = [f"k8s.io/kubernetes/cmd/{program}" for program in PROGRAMS[module]]
    stamp_file, stamp = f"{BIN}/.{module}", _stamp(module)
    with open(stamp_file if os.path.exists(stamp_file) else os.devnull, encoding="ascii") as old:
        if old.read() == stamp and all(os.path.exists(f"{BIN}/{program}") for program in PROGRAMS[module]):
            return
    say(f"building {', '.join(PROGRAMS[module])} (cold: minutes)")
    started = time.monotonic()
    target = f"{BIN}/" if len(packages) > 1 else f"{BIN}/{PROGRAMS[module][0]}"
    subprocess.run(
        ["nice", "-n", "19", go(), "build", "-C", f"{MODULES}/{module}", "-mod=readonly", "-trimpath",
         f"-ldflags={_flags(module)}", "-o", target, *packages],
        check=True, env={**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-buildvcs=false"})
    with open(stamp_file, "w", encoding="ascii") as out:
        out.write(stamp)
    say(f"built {module} in {time.monotonic() - started:.0f} s")


def source(module, package):
    """The folder of what a Go module of ours is made of, from the module cache; fetched where it is not there."""
    done = subprocess.run([go(), "mod", "download", "-C", f"{MODULES}/{module}", "-json", package], check=True,
                          capture_output=True, text=True, env={**os.environ, "GOTOOLCHAIN": "local"})
    return json.loads(done.stdout)["Dir"]


def build(say=print, modules=OF_EVERY_CLUSTER):
    """Builds what is missing or was built from something else. Needs network for the Go module proxy when cold."""
    os.makedirs(BIN, exist_ok=True)
    for module in modules:
        with locked_cache(module):
            _build(module, say)
