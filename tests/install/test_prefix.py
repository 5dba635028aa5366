"""What `make install` puts in place, and that it is found and works after the tree was moved."""

import ctypes
import re
from pathlib import Path

import pytest

from machine import MODELS, REPOSITORY, run
from prefix import Prefix
from reference import checksum

TINY_MODEL = MODELS / "tiny" / "mixtral.gguf"
COMPILERS = ["-DCMAKE_C_COMPILER=gcc", "-DCMAKE_CXX_COMPILER=g++"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Prefix:
    """libhypura without libllama, where some systems have their libraries."""
    return Prefix.moved(tmp_path_factory.mktemp("install"), "lib/some-linux-gnu")


def test_the_library_is_found_by_its_abi(alone: Prefix) -> None:
    links = {path.name: path.readlink() for path in alone.libraries.iterdir() if path.is_symlink()}
    soname = f"libhypura.so.{alone.abi}"
    assert links == {"libhypura.so": Path(soname), soname: Path(f"libhypura.so.{alone.version}")}
    assert f"[{soname}]" in run(["readelf", "-d", alone.libraries / "libhypura.so"]).stdout


def test_everything_is_of_one_version(alone: Prefix) -> None:
    library = ctypes.CDLL(str(alone.libraries / "libhypura.so"))
    library.hypura_version.restype = ctypes.c_char_p
    assert library.hypura_version().decode() == alone.version
    assert str(library.hypura_abi_version()) == alone.abi
    assert alone.pkg_config("--modversion") == [alone.version]
    assert run([alone.path / "bin" / "hypura", "--version"]).stdout.split() == ["hypura", alone.version]


def test_nothing_names_the_place(alone: Prefix) -> None:
    texts = [path for path in alone.path.rglob("*") if path.suffix in (".pc", ".cmake", ".h")]
    assert len(texts) == 4
    for path in texts:
        assert not re.search(rf"{REPOSITORY}|{alone.path.parent}", path.read_text()), path


def test_everyone_may_read_it(alone: Prefix) -> None:
    for path in alone.path.rglob("*"):
        if path.is_file():
            runs = path.parent.name == "bin" or ".so" in path.name
            assert path.stat().st_mode & 0o777 == (0o755 if runs else 0o644), path


def test_pkg_config_leads_to_a_program_that_works(alone: Prefix, tmp_path) -> None:
    program = tmp_path / "stream_all"
    flags = [*alone.pkg_config("--cflags", "--libs"), f"-Wl,-rpath,{alone.libraries}", "-pthread"]
    run(["gcc", "-O2", REPOSITORY / "examples" / "stream_all.c", *flags, "-o", program])
    assert run([program, TINY_MODEL]).stdout.split()[0] == checksum(TINY_MODEL)[0]


@pytest.mark.parametrize("has_llama", [True, False])
def test_cmake_builds_the_examples(alone: Prefix, prefix: Prefix, tmp_path, has_llama: bool) -> None:
    tree = prefix if has_llama else alone
    # With a library folder that CMake does not look into by itself, the package is named.
    where = f"-DCMAKE_PREFIX_PATH={tree.path}" if has_llama else f"-Dhypura_DIR={tree.libraries / 'cmake' / 'hypura'}"
    run(["cmake", "-G", "Ninja", "-S", REPOSITORY / "examples", "-B", tmp_path, where, *COMPILERS])
    run(["cmake", "--build", tmp_path])
    assert run([tmp_path / "stream_all", TINY_MODEL]).stdout.split()[0] == checksum(TINY_MODEL)[0]
    assert (tmp_path / "plain_llama").exists() == has_llama


@pytest.mark.parametrize(("wanted", "suits"), [("0.1", True), ("0.1.0 EXACT", True), ("0.1.99", False), ("0.2", False), ("1.0", False)])
def test_cmake_compares_versions(prefix: Prefix, tmp_path, wanted: str, suits: bool) -> None:
    assert prefix.version.startswith("0.1."), "these are other versions of now"
    project = f"cmake_minimum_required(VERSION 3.16)\nproject(asks LANGUAGES NONE)\nfind_package(hypura {wanted} REQUIRED)\n"
    (tmp_path / "CMakeLists.txt").write_text(project)
    command = ["cmake", "-G", "Ninja", "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={prefix.path}"]
    finished = run(command, status=0 if suits else 1)
    assert suits or re.search(r"hypura-config.cmake, version:\s+0\.1\.", finished.stderr)


def test_the_command_works(alone: Prefix) -> None:
    assert "expert" in run([alone.path / "bin" / "hypura", "inspect", TINY_MODEL]).stdout
    # It has nothing to do with the checkout that it was built in.
    refusal = run([alone.path / "bin" / "hypura", "run", TINY_MODEL, "-p", "x"], {"PATH": "/usr/bin:/bin"}, status=1).stderr
    assert "llama-completion was not found" in refusal
