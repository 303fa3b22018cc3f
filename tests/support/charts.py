"""The Helm chart as Helm renders it, without a cluster."""

import os
import shutil
import subprocess
import sys

import yaml

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.append(f"{ROOT}/tests/cluster")
from minicluster import binaries

CHART = f"{ROOT}/charts/nodemesh"
PROFILES = [None, *sorted(os.listdir(f"{CHART}/profiles"))]


class Helm:
    def __init__(self):
        binaries.build(modules=("helm",))

    def run(self, *words, check=True):
        return subprocess.run([f"{binaries.BIN}/helm", *words], capture_output=True, text=True, check=check)

    def text(self, *words, profile=None, namespace="nodemesh-system"):
        chosen = ["-f", f"{CHART}/profiles/{profile}"] if profile else []
        return self.run("template", "mesh", CHART, "-n", namespace, "--kube-version", "1.34", *chosen, *words).stdout

    def notes(self, folder, *words, namespace="nodemesh-system"):
        """What `helm install` would say, which asks a server first; `helm template` says nothing. So a copy of the chart in
        folder has the notes as one more object."""
        shutil.copytree(CHART, folder)
        with open(f"{folder}/templates/NOTES.txt", encoding="utf-8") as source:
            text = '{{ define "said" }}' + source.read() + '{{ end }}\nsaid: {{ include "said" . | toJson }}\n'
        with open(f"{folder}/templates/said.yaml", "w", encoding="utf-8") as out:
            out.write(text)
        done = self.run("template", "mesh", folder, "-n", namespace, "--kube-version", "1.34", "-s", "templates/said.yaml", *words)
        return yaml.safe_load(done.stdout)["said"]

    def objects(self, *words, **options):
        return [thing for thing in yaml.safe_load_all(self.text(*words, **options)) if thing]
