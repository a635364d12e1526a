#!/usr/bin/env python3
"""What the released binaries are made of: a CycloneDX 1.5 bill of materials, and the licence texts of every crate in it.

    python3 packaging/materials.py SBOM.json LICENCES_FOLDER [FEATURES]

Needs Python 3.11 and cargo, and no network once the crates are in cargo's cache. The same tree gives the same bytes.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tomllib
import uuid
from datetime import UTC, datetime

ROOTS = ("passerelle", "passerelle-loadtests")
TARGET = "x86_64-unknown-linux-gnu"
# What crates call the files that say how they may be used.
TEXTS = ("licen", "copying", "notice", "unlicense", "copyright", "authors")


def main(sbom, folder, features=""):
    metadata = cargo_metadata(features)
    packages = {package["id"]: package for package in metadata["packages"]}
    roots = [id for name in ROOTS for id in metadata["workspace_members"] if packages[id]["name"] == name]
    edges = shipped_edges(metadata["resolve"], roots)
    ids = sorted(edges, key=lambda id: reference(packages[id]))
    shipped = [packages[id] for id in ids]
    needs = {reference(packages[id]): sorted({reference(packages[need]) for need in edges[id]}) for id in ids}
    write_bill(sbom, packages[roots[0]], shipped, needs)
    write_texts(pathlib.Path(folder), [package for package in shipped if package["source"]])


def cargo_metadata(features):
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", TARGET]
    command += ["--features", features]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def shipped_edges(resolve, roots):
    """By id: what it needs to be built and to run, from the binaries down. What only tests need is left out."""
    nodes = {node["id"]: node for node in resolve["nodes"]}
    edges, waiting = {}, list(roots)
    while waiting:
        id = waiting.pop()
        if id not in edges:
            edges[id] = [needed["pkg"] for needed in nodes[id]["deps"] if not is_only_for_tests(needed)]
            waiting += edges[id]
    return edges


def is_only_for_tests(needed):
    return {kind["kind"] for kind in needed["dep_kinds"]} == {"dev"}


def locked_checksums():
    lock = tomllib.loads(pathlib.Path("Cargo.lock").read_text())
    return {(package["name"], package["version"]): package.get("checksum") for package in lock["package"]}


def reference(package):
    return f"pkg:cargo/{package['name']}@{package['version']}"


def component(package, checksums):
    checksum = checksums.get((package["name"], package["version"]))
    described = {
        "type": "library",
        "bom-ref": reference(package),
        "name": package["name"],
        "version": package["version"],
        "purl": reference(package),
        "licenses": [{"expression": (package["license"] or "NOASSERTION").replace("/", " OR ")}],
    }
    if checksum:
        described["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    return described


def write_bill(file, root, shipped, needs):
    checksums = locked_checksums()
    made = datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", 0)), UTC)
    lock = pathlib.Path("Cargo.lock").read_bytes().hex()
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, lock)}",
        "version": 1,
        "metadata": {
            "timestamp": made.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": {**component(root, checksums), "type": "application"},
        },
        "components": [component(package, checksums) for package in shipped if package is not root],
        "dependencies": [{"ref": package, "dependsOn": needed} for package, needed in needs.items()],
    }
    pathlib.Path(file).write_text(json.dumps(bill, indent=2) + "\n")


def write_texts(folder, shipped):
    """`NAME-VERSION/` for each crate that brings its texts, and an index that names the licence of all."""
    folder.mkdir(parents=True)
    lines = []
    for package in shipped:
        name = f"{package['name']}-{package['version']}"
        texts = texts_of(pathlib.Path(package["manifest_path"]).parent)
        for text in texts:
            (folder / name).mkdir(exist_ok=True)
            shutil.copyfile(text, folder / name / text.name)
        note = "" if texts else " (the crate holds no text of it)"
        lines.append(f"{name}: {package['license']}{note}\n")
    (folder / "INDEX").write_text("".join(lines))


def texts_of(crate):
    return sorted(file for file in crate.iterdir() if file.is_file() and file.name.lower().startswith(TEXTS))


if __name__ == "__main__":
    main(*sys.argv[1:])
