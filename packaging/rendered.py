"""The chart of each profile as plain manifests, packaging/manifests/NAME.yaml, which are built into meshctl: for
clusters without Helm. Needs Helm; the chart tier says when they are not current."""

import argparse
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CHART = f"{ROOT}/charts/nodemesh"
FOLDER = f"{ROOT}/packaging/manifests"
sys.path.append(f"{ROOT}/tests/cluster")
from minicluster import binaries


def render():
    """{file name: text}; `default` is the chart without a profile."""
    binaries.build(modules=("helm",))
    found = {}
    for name in ("default.yaml", *sorted(os.listdir(f"{CHART}/profiles"))):
        chosen = [] if name == "default.yaml" else ["--values", f"{CHART}/profiles/{name}"]
        done = subprocess.run([f"{binaries.BIN}/helm", "template", "nodemesh", CHART, "--namespace", "nodemesh-system",
                               "--kube-version", "1.34", "--no-hooks", *chosen], capture_output=True, text=True, check=True)
        found[name] = done.stdout
    return found


def committed():
    found = {}
    for name in os.listdir(FOLDER):
        with open(f"{FOLDER}/{name}", encoding="utf-8") as source:
            found[name] = source.read()
    return found


def main():
    argparse.ArgumentParser(prog="scripts/manifests", description=__doc__).parse_args()
    rendered = render()
    for name in committed().keys() - rendered.keys():
        os.unlink(f"{FOLDER}/{name}")
    for name, text in rendered.items():
        with open(f"{FOLDER}/{name}", "w", encoding="utf-8") as target:
            target.write(text)
        print(f"{FOLDER}/{name}")


if __name__ == "__main__":
    main()
