"""The licences of the Rust crates that are linked into libhypura and the hypura command, as one text.

Most crates share a few texts, so each text is there once, below the crates that it belongs to.
"""

import json
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LICENCE_FILE = re.compile(r"(licen[cs]e|copying|notice|unlicense)\b.*", re.IGNORECASE)
RULE = "-" * 80


def linked_packages() -> list[dict]:
    """What cargo knows of the packages that end up in the binaries: no build scripts', no tests', no other platform's."""
    host = re.search(r"^host: (.*)$", subprocess.run(["rustc", "-vV"], check=True, capture_output=True, text=True).stdout, re.M)[1]
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", host]
    metadata = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    linked, waiting = set(), list(metadata["workspace_members"])
    while waiting:
        package = waiting.pop()
        if package not in linked:
            linked.add(package)
            needs = nodes[package]["deps"]
            waiting += [need["pkg"] for need in needs if any(kind["kind"] is None for kind in need["dep_kinds"])]
    others = linked - set(metadata["workspace_members"])
    return sorted((package for package in metadata["packages"] if package["id"] in others), key=lambda package: package["name"])


def licence_texts(package: dict) -> list[str]:
    folder = Path(package["manifest_path"]).parent
    files = sorted(path for path in folder.iterdir() if path.is_file() and LICENCE_FILE.fullmatch(path.name))
    # A crate that carries no text says at least which licence it means.
    return [path.read_text(errors="replace").strip() for path in files] or [package["license"] or "no licence is stated"]


def crate_licences() -> str:
    crates_by_text: dict[str, list[str]] = {}
    for package in linked_packages():
        for text in licence_texts(package):
            crates_by_text.setdefault(text, []).append(f"{package['name']} {package['version']}")
    sections = [f"{RULE}\n{', '.join(crates)}\n{RULE}\n\n{text}\n" for text, crates in crates_by_text.items()]
    return "\n".join(sections)
