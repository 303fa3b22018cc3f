"""The SBOM of an image as an SPDX 2.3 document: our own package and every Debian package that a file came from."""

import datetime
import hashlib
import json
import re
import subprocess

import oci


def _debian(names):
    """(package, version, source package, source version) of installed packages."""
    form = "${Package}\t${Version}\t${source:Package}\t${source:Version}\n"
    done = subprocess.run(["dpkg-query", "-W", f"-f={form}", *sorted(names)], capture_output=True, text=True, check=True)
    return [tuple(line.split("\t")) for line in done.stdout.splitlines()]


def _identifier(name):
    return "SPDXRef-" + re.sub(r"[^A-Za-z0-9.-]", "-", name)


def document(name, version, packages, licence, made):
    """SPDX JSON as a string. made is the time in seconds since 1970 that the document claims."""
    created = datetime.datetime.utcfromtimestamp(made).strftime("%Y-%m-%dT%H:%M:%SZ")
    own = {"SPDXID": _identifier(name), "name": name, "versionInfo": version, "downloadLocation": "NOASSERTION",
           "filesAnalyzed": False, "licenseConcluded": licence, "licenseDeclared": licence,
           "copyrightText": "NOASSERTION", "supplier": "Organization: nodemesh"}
    parts = [{
        "SPDXID": _identifier(f"deb-{package}"), "name": package, "versionInfo": package_version,
        "supplier": "Organization: Debian", "downloadLocation": "NOASSERTION", "filesAnalyzed": False,
        "licenseConcluded": "NOASSERTION", "licenseDeclared": "NOASSERTION",
        "copyrightText": f"see /usr/share/doc/{package}/copyright",
        "sourceInfo": f"built from: {source} {source_version}",
        "externalRefs": [{"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator":
                          f"pkg:deb/debian/{package}@{package_version.replace(':', '%3A')}"
                          f"?arch={oci.ARCHITECTURE}&distro=debian-12"}],
    } for package, package_version, source, source_version in _debian(packages)]
    content = hashlib.sha256(json.dumps([own, parts]).encode()).hexdigest()
    relations = [{"spdxElementId": "SPDXRef-DOCUMENT", "relationshipType": "DESCRIBES", "relatedSpdxElement": own["SPDXID"]}]
    relations += [{"spdxElementId": own["SPDXID"], "relationshipType": "CONTAINS", "relatedSpdxElement": part["SPDXID"]}
                  for part in parts]
    return json.dumps({
        "spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0", "SPDXID": "SPDXRef-DOCUMENT", "name": f"{name}-{version}",
        "documentNamespace": f"https://nodemesh.dev/spdx/{name}-{version}-{content[:32]}",
        "creationInfo": {"created": created, "creators": ["Tool: nodemesh-image", "Organization: nodemesh"]},
        "packages": [own, *parts], "relationships": relations}, indent=1)
