"""The nodemesh image: warden, proxy, controller and meshctl with the libraries that they load, and nothing else: no
shell, no package manager. It runs as user 65532 unless a pod says otherwise, and works on a read-only root."""

import argparse
import os
import re
import subprocess
import tempfile

import oci
import sbom
from rootfs import Rootfs

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAMS = {"nodemesh-warden": "agent/app", "nodemesh-proxy": "agent/app", "nodemesh-controller": "controller",
            "meshctl": "ctl"}
USER = 65532
LICENCE = "Apache-2.0"  # of the BPF objects' two licences too, see LICENSES/README.md
SBOM = "/usr/share/doc/nodemesh/sbom.spdx.json"


def version():
    with open(f"{ROOT}/CMakeLists.txt", encoding="utf-8") as source:
        return re.search(r"^project\(nodemesh VERSION (\S+)", source.read(), re.MULTILINE)[1]


def _made(paths):
    """The time that the image claims to be of: SOURCE_DATE_EPOCH, or that of the newest program."""
    return int(os.environ.get("SOURCE_DATE_EPOCH") or max(os.stat(path).st_mtime for path in paths))


def write(path, name, build, unpacked=None):
    """Writes the image called name from the programs of a build folder to path, and its SBOM beside it; its tree into the
    folder unpacked too, where that is given."""
    sources = {program: f"{build}/{folder}/{program}" for program, folder in PROGRAMS.items()}
    absent = [source for source in sources.values() if not os.path.exists(source)]
    if absent:
        raise RuntimeError(f"no {absent[0]}: build first (cmake --build {build})")
    rootfs = Rootfs()
    rootfs.user("nodemesh", USER)
    for file in ("LICENSE", *(f"LICENSES/{name}" for name in sorted(os.listdir(f"{ROOT}/LICENSES")))):
        rootfs.file(f"/usr/share/doc/nodemesh/{os.path.basename(file)}", f"{ROOT}/{file}", 0o644)
    with tempfile.TemporaryDirectory() as folder:
        for program, source in sources.items():
            stripped = f"{folder}/{program}"
            subprocess.run(["llvm-strip-19", "-o", stripped, source], check=True)
            rootfs.program(stripped, f"/usr/bin/{program}")
        text = sbom.document("nodemesh", version(), rootfs.packages, LICENCE, _made(sources.values()))
        rootfs.text(SBOM, text)
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        oci.write(path, name, rootfs, command=["/usr/bin/meshctl", "version"], user=f"{USER}:{USER}", labels={
            "org.opencontainers.image.title": "nodemesh", "org.opencontainers.image.version": version(),
            "org.opencontainers.image.licenses": LICENCE})
        if unpacked:
            os.makedirs(unpacked)
            rootfs.unpack(unpacked)
    with open(f"{path.removesuffix('.tar')}.spdx.json", "w", encoding="utf-8") as out:
        out.write(text)


def main():
    parser = argparse.ArgumentParser(prog="scripts/image", description="Writes the nodemesh image (an OCI layout as a tar "
                                     "file) and its SBOM (SPDX) without Docker, from the programs of a build.")
    parser.add_argument("--build-dir", default=f"{ROOT}/build/release", help="default: build/release")
    parser.add_argument("--name", default=f"localhost/nodemesh:{version()}", help="repository:tag, default %(default)s")
    parser.add_argument("--output", default=f"{ROOT}/build/image/nodemesh-{version()}.tar", help="default: %(default)s")
    parser.add_argument("--unpacked", metavar="FOLDER", help="write the image's files into a new folder too")
    options = parser.parse_args()
    try:
        write(options.output, options.name, os.path.abspath(options.build_dir), options.unpacked)
    except (RuntimeError, OSError) as error:
        parser.exit(1, f"scripts/image: {error}\n")
    print(f"{options.name}: {options.output} ({os.stat(options.output).st_size >> 20} MiB)")


if __name__ == "__main__":
    main()
