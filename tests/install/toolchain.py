"""Hosts in C and C++: compiled against an installed tree by gcc or clang, and run as they are, under sanitizers or valgrind."""

import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from machine import require, run, skip
from prefix import Prefix

C, CPP = "c", "c++"
COMPILERS = {"gcc": {C: "gcc", CPP: "g++"}, "clang": {C: "clang", CPP: "clang++"}}
KINDS = ("plain", "sanitizers", "valgrind")
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]
FLAGS = {
    "plain": ["-O2"],
    "sanitizers": ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "valgrind": ["-O1"],
}
# An error, or memory that is lost at exit, ends a program with this status.
VALGRIND = ["valgrind", "--quiet", "--leak-check=full", "--errors-for-leak-kinds=definite,indirect", "--error-exitcode=99"]
VALGRIND += [f"--suppressions={Path(__file__).with_name('valgrind.supp')}"]


def compiler(name: str, language: str) -> str:
    command = COMPILERS[name][language]
    require(command, "g++" if command == "g++" else name)
    return command


@dataclass
class Toolchain:
    """One way of building and running hosts."""

    name: str
    kind: str
    prefix: Prefix
    scratch: Path
    programs: dict[Path, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind == "valgrind":
            require("valgrind", "valgrind")
        if self.kind == "sanitizers":
            probe = self.scratch / "probe.c"
            probe.write_text("int main(void) { return 0; }\n")
            command = [compiler(self.name, C), *FLAGS[self.kind], probe, "-o", probe.with_suffix("")]
            if subprocess.run(command, capture_output=True).returncode:
                skip(f"{self.name} has no sanitizers here; on Debian and Ubuntu clang's are in libclang-rt-dev")

    def build(self, source: Path, *libraries: str) -> Path:
        """A program of a source file, linked with the installed libhypura and with others that lie beside it."""
        if source not in self.programs:
            language = CPP if source.suffix == ".cpp" else C
            program = self.scratch / f"{source.stem}-{self.name}-{self.kind}"
            standard = "-std=c++17" if language == CPP else "-std=c11"
            command = [compiler(self.name, language), standard, *WARNINGS, *FLAGS[self.kind], "-pthread", source, "-o", program]
            command += self.prefix.pkg_config("--cflags", "--libs")
            run([*command, *libraries, f"-Wl,-rpath,{self.prefix.libraries}"])
            self.programs[source] = program
        return self.programs[source]

    def run(self, program: Path, *arguments, settings: dict[str, str] | None = None, status: int = 0) -> str:
        """What the program prints; a leak or another error that sanitizers or valgrind find is a failure."""
        through = VALGRIND if self.kind == "valgrind" else []
        finished = run([*through, program, *arguments], settings, status)
        return finished.stderr if status else finished.stdout
