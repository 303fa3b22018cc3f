"""The Helm chart as one file, with the CRDs of Istio's API that the mesh reads.

They go into the chart's crds/ folder, which Helm installs where they are absent, never changes and never deletes;
`--skip-crds` leaves them out. They come from Istio's Go module, which packaging/crds pins, and are not kept here."""

import argparse
import gzip
import io
import json
import os
import re
import subprocess
import sys
import tarfile

import yaml

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CHART = f"{ROOT}/charts/nodemesh"
sys.path.append(f"{ROOT}/tests/cluster")
from minicluster.binaries import go

MODULE = "istio.io/api"
CRDS = ("authorizationpolicies.security.istio.io", "destinationrules.networking.istio.io",
        "peerauthentications.security.istio.io")


def crds():
    """The CRDs' YAML."""
    done = subprocess.run([go(), "mod", "download", "-json", MODULE], cwd=f"{ROOT}/packaging/crds", capture_output=True,
                          text=True, check=False, env={**os.environ, "GOFLAGS": "-mod=readonly", "GOTOOLCHAIN": "local"})
    if done.returncode != 0:
        raise RuntimeError(f"go mod download {MODULE}: {done.stderr.strip() or done.stdout.strip()}")
    with open(f"{json.loads(done.stdout)['Dir']}/kubernetes/customresourcedefinitions.gen.yaml", encoding="utf-8") as source:
        parts = re.split(r"^---$", source.read(), flags=re.MULTILINE)
    named = {yaml.load(part, yaml.CSafeLoader)["metadata"]["name"]: part.strip() for part in parts if "kind:" in part}
    return "\n---\n".join(named[name] for name in CRDS) + "\n"


def files():
    """{path below the chart: bytes}."""
    found = {"crds/istio.yaml": crds().encode()}
    for folder, _, names in os.walk(CHART):
        for name in names:
            with open(f"{folder}/{name}", "rb") as source:
                found[os.path.relpath(f"{folder}/{name}", CHART)] = source.read()
    return found


def version():
    with open(f"{CHART}/Chart.yaml", encoding="utf-8") as source:
        return yaml.safe_load(source)["version"]


def write(path):
    """The same input gives the same bytes."""
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        everything = files()
        # Helm wants Chart.yaml first.
        for name in sorted(everything, key=lambda name: (name != "Chart.yaml", name)):
            info = tarfile.TarInfo(f"nodemesh/{name}")
            info.size, info.mode = len(everything[name]), 0o644
            tar.addfile(info, io.BytesIO(everything[name]))
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path, "wb") as target:
        target.write(out.getvalue())


def main():
    parser = argparse.ArgumentParser(prog="scripts/chart", description="Writes the Helm chart as one file, with the CRDs of "
                                     "Istio's API that the mesh reads (network: the Go module proxy).")
    parser.add_argument("--output", default=f"{ROOT}/build/chart/nodemesh-{version()}.tgz", help="default: %(default)s")
    parser.add_argument("--crds", metavar="FILE", help="write the CRDs alone, for `meshctl install --crds`")
    options = parser.parse_args()
    try:
        if options.crds:
            with open(options.crds, "w", encoding="utf-8") as target:
                target.write(crds())
            print(options.crds)
            return
        write(options.output)
    except (RuntimeError, OSError) as error:
        parser.exit(1, f"scripts/chart: {error}\n")
    print(options.output)


if __name__ == "__main__":
    main()
