"""The reference of the chart's values, docs/helm-values.md, from the comments in values.yaml and the types in
values.schema.json. `scripts/helm-values` writes it; `scripts/lint` asks for what differs.

A value is documented by a comment `# -- …` right above it. A map with such a comment is one value; a map without one is a
section, whose members need theirs."""

import argparse
import json
import os
import re
import sys

import yaml

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CHART = f"{ROOT}/charts/nodemesh"
REFERENCE = f"{ROOT}/docs/helm-values.md"
KEY = re.compile(r"^( *)([A-Za-z][A-Za-z0-9]*):")


def comments(text):
    """{path: documentation} of the keys in values.yaml that have one."""
    found, path, said = {}, [], None
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("# -- "):
            said = [stripped[5:]]
        elif stripped.startswith("#"):
            if said is not None:
                said.append(stripped[1:].strip())
        elif match := KEY.match(line):
            depth = len(match[1]) // 2
            path = path[:depth] + [match[2]]
            if said:
                found[".".join(path)] = " ".join(said)
            said = None
    return found


def leaves(values, documented, path=""):
    """(path, default) of every value: what has documentation, and what is no map."""
    for key, value in values.items():
        here = f"{path}.{key}" if path else key
        if isinstance(value, dict) and here not in documented:
            yield from leaves(value, documented, here)
        else:
            yield here, value


def schema_of(schema, path):
    """The schema of a value, or None where values.schema.json does not know it."""
    for key in path.split("."):
        schema = schema.get("properties", {}).get(key)
        if schema is None:
            return None
    return schema


def schema_paths(schema, documented, path=""):
    for key, one in schema.get("properties", {}).items():
        here = f"{path}.{key}" if path else key
        if "properties" in one and here not in documented:
            yield from schema_paths(one, documented, here)
        elif here != "global":  # Helm's own
            yield here


def kind(schema):
    if "enum" in schema:
        return " \\| ".join(schema["enum"])
    if "anyOf" in schema:
        return " or ".join(one["type"] for one in schema["anyOf"])
    return schema["type"]


def findings():
    """(what is wrong, the reference's text)."""
    with open(f"{CHART}/values.yaml", encoding="utf-8") as source:
        text = source.read()
    with open(f"{CHART}/values.schema.json", encoding="utf-8") as source:
        schema = json.load(source)
    documented = comments(text)
    defaults = dict(leaves(yaml.safe_load(text), documented))
    wrong = [f"charts/nodemesh/values.yaml: {path} has no comment `# -- …`" for path in defaults if path not in documented]
    wrong += [f"charts/nodemesh/values.schema.json: {path} is not in it" for path in defaults if not schema_of(schema, path)]
    wrong += [f"charts/nodemesh/values.yaml: {path} is in values.schema.json alone"
              for path in schema_paths(schema, documented) if path not in defaults]
    lines = ["# Values of the Helm chart", "",
             "Written by `scripts/helm-values` from `charts/nodemesh/values.yaml`. None must be set; a name that is not here is",
             "refused by the chart. Files with sets of values: `charts/nodemesh/profiles`.", "",
             "| value | type | default | meaning |", "|---|---|---|---|"]
    for path, default in defaults.items():
        shown = json.dumps(default).replace("|", "\\|")
        lines.append(f"| `{path}` | {kind(schema_of(schema, path) or {'type': '?'})} | `{shown}` | {documented.get(path, '')} |")
    return wrong, "\n".join(lines) + "\n"


def check():
    """What `scripts/lint` prints."""
    wrong, text = findings()
    try:
        with open(REFERENCE, encoding="utf-8") as source:
            same = source.read() == text
    except FileNotFoundError:
        same = False
    return wrong + ([] if same else ["docs/helm-values.md is not what the chart says: run scripts/helm-values"])


def main():
    argparse.ArgumentParser(prog="scripts/helm-values", description=__doc__).parse_args()
    wrong, text = findings()
    if wrong:
        sys.exit("\n".join(wrong))
    with open(REFERENCE, "w", encoding="utf-8") as out:
        out.write(text)


if __name__ == "__main__":
    main()
