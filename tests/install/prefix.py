"""An installed tree, as `make install` leaves it."""

import re
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from machine import LLAMA_BUILD, REPOSITORY, require, run


def installed(scratch: Path, *variables: str) -> Path:
    """Runs `make install` for a place that it must not touch, since DESTDIR redirects it, and returns what that got."""
    prefix = scratch / "prefix"
    run(["make", "-C", REPOSITORY, "install", f"PREFIX={prefix}", f"DESTDIR={scratch / 'stage'}", *variables])
    assert not prefix.exists(), "DESTDIR was not respected"
    return scratch / "stage" / prefix.relative_to("/")


@dataclass
class Prefix:
    """A tree with the library's files. It lies where it was moved to after it was installed."""

    path: Path
    library_folder: str = "lib"

    @classmethod
    def moved(cls, scratch: Path, library_folder: str = "lib") -> "Prefix":
        tree = installed(scratch, f"LIBDIR={library_folder}")
        return cls(Path(shutil.move(tree, scratch / "moved")), library_folder)

    @property
    def libraries(self) -> Path:
        return self.path / self.library_folder

    @cached_property
    def version(self) -> str:
        return re.search(r'^version = "(.*)"$', (REPOSITORY / "Cargo.toml").read_text(), re.MULTILINE)[1]

    @cached_property
    def abi(self) -> str:
        return re.search(r"^#define HYPURA_ABI_VERSION (\d+)$", (self.path / "include" / "hypura.h").read_text(), re.MULTILINE)[1]

    def pkg_config(self, *arguments: str) -> list[str]:
        require("pkg-config", "pkg-config")
        packages = {"PKG_CONFIG_LIBDIR": str(self.libraries / "pkgconfig")}
        return run(["pkg-config", *arguments, "hypura"], packages).stdout.split()

    def add_llama(self) -> None:
        """Installs the libllama with libhypura, by llama.cpp's own rules. Only these: the programs are not all built."""
        own = ["-DCMAKE_INSTALL_LOCAL_ONLY=ON", f"-DCMAKE_INSTALL_PREFIX={self.path}"]
        run(["cmake", *own, "-P", LLAMA_BUILD / "cmake_install.cmake"])
        run(["cmake", "--install", LLAMA_BUILD / "ggml", "--prefix", self.path])
