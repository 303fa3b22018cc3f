"""Writes an image as an OCI layout in one tar file, which containerd, podman, skopeo and crane read. No registry and no
container tool is needed. The same input gives the same bytes. OCI image specification 1.0."""

import hashlib
import io
import json
import os
import platform
import tarfile

MEDIA = "application/vnd.oci.image."
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _layer(rootfs):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for target, entry in sorted(rootfs.entries.items()):
            info = tarfile.TarInfo(target.lstrip("/"))
            info.mode = entry.mode
            if entry.link is not None:
                info.type, info.linkname = tarfile.SYMTYPE, entry.link
                tar.addfile(info)
            elif entry.source is not None:
                info.size = os.stat(entry.source).st_size
                with open(entry.source, "rb") as source:
                    tar.addfile(info, source)
            elif entry.data is not None:
                info.size = len(entry.data)
                tar.addfile(info, io.BytesIO(entry.data))
            else:
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
    return out.getvalue()


def write(path, name, rootfs, entrypoint=None, command=None, user=None, labels=None):
    """Writes the image called name (repository:tag) with one layer to path."""
    blobs = {}

    def blob(data, media):
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {"mediaType": MEDIA + media, "digest": f"sha256:{digest}", "size": len(data)}

    layer = blob(_layer(rootfs), "layer.v1.tar")
    settings = {"Entrypoint": entrypoint, "Cmd": command, "User": user, "Labels": labels, "WorkingDir": "/", "Env": [PATH]}
    config = blob(json.dumps({
        "architecture": ARCHITECTURE, "os": "linux",
        "config": {key: value for key, value in settings.items() if value is not None},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}}).encode(), "config.v1+json")
    manifest = blob(json.dumps({"schemaVersion": 2, "mediaType": f"{MEDIA}manifest.v1+json", "config": config,
                                "layers": [layer]}).encode(), "manifest.v1+json")
    index = {"schemaVersion": 2, "mediaType": f"{MEDIA}index.v1+json", "manifests": [{
        **manifest, "platform": {"architecture": ARCHITECTURE, "os": "linux"},
        # containerd takes the whole name from the first, other tools the tag from the second
        "annotations": {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rsplit(":")[-1]}}]}
    files = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": json.dumps(index).encode(),
             **{f"blobs/sha256/{digest}": data for digest, data in blobs.items()}}
    unfinished = f"{path}.new"
    with tarfile.open(unfinished, "w") as tar:
        for file, data in files.items():
            info = tarfile.TarInfo(file)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    os.replace(unfinished, path)
