"""Switched off, libhypura is not there: at run time by `HYPURA=off`, at build time by `LLAMA_HYPURA=OFF`."""

import subprocess
from pathlib import Path

import pytest

from conftest import require
from logits import MODES, LogitsProgram, difference, position_count
from models import SMOLLM2, SMOLLM2_MOE, TINY, TRAINED_MOE, Model, tiny
from programs import BIN, COMPARABLE, OFF, OFF_BIN, complete


@pytest.fixture(scope="module")
def stock_logits(tmp_path_factory, text_file):
    """tests/e2e/logits.cpp, linked with the build that has no libhypura."""
    program = LogitsProgram.build(OFF_BIN, tmp_path_factory.mktemp("stock-logits"), text_file)
    yield program
    program.discard()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("model", [SMOLLM2_MOE, *TINY], ids=lambda model: model.name)
def test_logits_equal_those_of_the_build_without_it(model: Model, mode: str, logits, stock_logits: LogitsProgram) -> None:
    positions = position_count(model, mode)
    output = stock_logits.scratch / "stock"
    stock_logits.run(model.path, mode, positions, {}, output).succeeded()
    assert difference(logits.resident(model, mode, positions), output, positions) is None


@pytest.mark.parametrize("settings", [OFF, {}], ids=["HYPURA=off", "no setting, and the model fits"])
@pytest.mark.parametrize("model", [SMOLLM2, SMOLLM2_MOE, TRAINED_MOE], ids=lambda model: model.name)
def test_text_equals_that_of_the_build_without_it(model: Model, settings: dict[str, str], tmp_path) -> None:
    """With llama.cpp's default flags: repacked weights too, unless stock itself crashes on them, as it does with AMX on some virtual machines."""
    require(model)
    for flags in (["-t", "2"], COMPARABLE):
        stock = complete(model.path, {}, tmp_path, program=OFF_BIN / "llama-completion", flags=flags)
        if stock.status >= 0:
            break
    stock.succeeded()
    off = complete(model.path, settings, tmp_path, flags=flags).succeeded()
    assert off.output == stock.output
    assert len(stock.output.strip()) > 10
    assert "streaming:" not in off.log


def test_off_writes_nothing(tmp_path) -> None:
    """No statistics, since there is nothing to count."""
    stats = tmp_path / "stats.json"
    complete(tiny("mixtral").path, OFF | {"HYPURA_STATS": str(stats)}, tmp_path).succeeded()
    assert not stats.exists()


def test_the_build_without_it_contains_none_of_it() -> None:
    """No library, no dependency, no symbol, no text."""
    files = [path for path in OFF_BIN.iterdir() if not path.is_symlink()]
    assert not [path.name for path in files if "hypura" in path.name.lower()]
    linked = subprocess.run(["ldd", OFF_BIN / "llama-completion"], capture_output=True, text=True, check=True).stdout
    # only the names: a path may contain that of the directory that the sources are in
    linked_names = " ".join(Path(line.split()[0]).name for line in linked.splitlines())
    assert "libllama" in linked_names and "hypura" not in linked_names
    for path in files:
        symbols = subprocess.run(["nm", "-D", "-C", path], capture_output=True, text=True, check=True).stdout
        assert "hypura" not in symbols.lower(), path.name
        content = path.read_bytes()
        assert b"HYPURA" not in content and b"hypura:" not in content, path.name
    with_it = subprocess.run(["nm", "-D", BIN / "libggml.so"], capture_output=True, text=True, check=True).stdout
    assert "hypura" in with_it, "this test would not see it"
