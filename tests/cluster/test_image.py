"""The nodemesh image, as scripts/image makes it: what is in it, and that it runs as a cluster wants it to."""

import io
import json
import os
import subprocess
import tarfile

import pytest
from minicluster import workloads

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.environ.get("NODEMESH_BUILD_DIR") or f"{ROOT}/build/release"
NAME = "localhost/nodemesh:test"


def write(path):
    subprocess.run([f"{ROOT}/scripts/image", "--build-dir", BUILD, "--name", NAME, "--output", path], check=True,
                   stdout=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "nodemesh.tar"
    write(path)
    return path


def contents(path):
    """(configuration, the layer as a tar file) of an image, found from its index as a runtime would."""
    with tarfile.open(path) as tar:
        def blob(descriptor):
            return tar.extractfile(f"blobs/{descriptor['digest'].replace(':', '/')}").read()

        manifest = json.loads(blob(json.load(tar.extractfile("index.json"))["manifests"][0]))
        layer, = manifest["layers"]
        return json.loads(blob(manifest["config"])), tarfile.open(fileobj=io.BytesIO(blob(layer)))


def test_the_image_is_the_same_byte_for_byte_when_written_again(image, tmp_path):
    write(tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == image.read_bytes()


def test_the_image_has_no_shell_no_setuid_program_and_a_user_without_rights(image):
    config, layer = contents(image)
    assert config["config"]["User"] == "65532:65532"
    names = {member.name for member in layer.getmembers()}
    programs = {"nodemesh-warden", "nodemesh-proxy", "nodemesh-controller", "meshctl"}
    assert {name.removeprefix("usr/bin/") for name in names if name.startswith("usr/bin/")} == programs
    assert not [member.name for member in layer.getmembers() if member.isfile() and member.mode & 0o6022]


def test_the_sbom_names_the_debian_package_and_version_of_every_library(image):
    _, layer = contents(image)
    document = json.load(layer.extractfile("usr/share/doc/nodemesh/sbom.spdx.json"))
    with open(str(image).replace(".tar", ".spdx.json"), encoding="utf-8") as beside:
        assert json.load(beside) == document
    listed = {part["name"]: part["versionInfo"] for part in document["packages"]}
    libraries = [member.name for member in layer.getmembers() if ".so" in member.name]
    assert len(libraries) > 20
    names = {library: {name for path in (f"/{library}", f"/{library.removeprefix('usr/')}")
                       for name in (path, os.path.realpath(path))} for library in libraries}
    done = subprocess.run(["dpkg-query", "-S", *set().union(*names.values())], capture_output=True, text=True, check=False)
    owners = {path: packages.split(":")[0] for packages, path in (line.split(": ", 1) for line in done.stdout.splitlines())}
    done = subprocess.run(["dpkg-query", "-W", "-f=${Package} ${Version}\n", *listed.keys() - {"nodemesh"}], text=True,
                          capture_output=True, check=True)
    assert dict(line.split() for line in done.stdout.splitlines()).items() <= listed.items()
    packages = {next(owners[name] for name in names[library] if name in owners) for library in libraries}
    assert set(listed) == {"nodemesh", *packages}
    assert {f"usr/share/doc/{package}/copyright" for package in packages} <= set(layer.getnames())


def test_every_program_of_the_image_starts_without_rights_on_a_read_only_root(cluster, image):
    cluster.load_image(image)
    secure = {"runAsNonRoot": True, "readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False,
              "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}}
    commands = {"warden": ["/usr/bin/nodemesh-warden", "--help"], "proxy": ["/usr/bin/nodemesh-proxy", "--help"],
                "controller": ["/usr/bin/nodemesh-controller", "--help"], "meshctl": None}
    containers = [{"name": name, "image": NAME, "imagePullPolicy": "Never", "securityContext": secure,
                   **({"command": command} if command else {})} for name, command in commands.items()]
    cluster.apply([workloads.namespace("image"), workloads.pod("image", "image", workloads.pod_spec(
        *containers, restartPolicy="Never"))])

    def ended():
        pod, = cluster.pods("app=image", "image")
        return pod if pod.object["status"]["phase"] in ("Succeeded", "Failed") else None

    pod = cluster.wait(ended, 30, "the pod ends")
    logs = {name: pod.logs(name) for name in commands}
    assert pod.object["status"]["phase"] == "Succeeded", logs
    assert "0." in logs["meshctl"] and "--config" in logs["controller"] and "--" in logs["proxy"] and "--" in logs["warden"]
