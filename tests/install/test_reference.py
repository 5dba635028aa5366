"""The reference of the C API is complete, and stays so: doxygen's warnings are errors."""

import re
from pathlib import Path

import pytest

from machine import REPOSITORY, require, run

HEADER = (REPOSITORY / "include" / "hypura.h").read_text()
FUNCTIONS = set(re.findall(r"^\w.*?\b(hypura_\w+)\(", HEADER, re.MULTILINE))
PAGES = ["README.md", "docs/EMBEDDING.md", "docs/THREADS.md"]


@pytest.fixture(scope="module")
def html() -> Path:
    require("doxygen", "doxygen")
    run(["make", "-C", REPOSITORY, "docs"])
    return REPOSITORY / "build" / "docs" / "html"


def test_every_function_is_described(html: Path) -> None:
    assert len(FUNCTIONS) > 20
    described = set(re.findall(r'<td class="memname">.*?(hypura_\w+)', (html / "hypura_8h.html").read_text()))
    assert FUNCTIONS <= described


def test_pages_lead_to_the_functions(html: Path) -> None:
    (threads,) = html.glob("md_docs*THREADS.html")
    for page in (html / "index.html", threads):
        links = re.findall(r'href="hypura_8h.html#\w+"[^>]*>(hypura_\w+)\(\)', page.read_text())
        assert len(set(links)) > 8, page
    assert threads.name in (html / "index.html").read_text()


@pytest.mark.parametrize("page", PAGES)
def test_pages_name_only_what_exists(page: str) -> None:
    named = set(re.findall(r"\bhypura_\w+\b", (REPOSITORY / page).read_text()))
    # A name that ends in an underscore stands for all that begin so.
    assert not {name for name in named if name not in HEADER}


GAPS = {
    "parameter": r"/// @param row_length .*\n",
    "return-value": r"/// @return [^/]*\n(?=int32_t hypura_fetch_new)",
    "field": r"/// Which expert; .*\n",
}


@pytest.mark.parametrize("missing", GAPS.values(), ids=GAPS)
def test_a_gap_is_an_error(tmp_path, missing: str) -> None:
    require("doxygen", "doxygen")
    header, count = re.subn(missing, "", HEADER)
    assert count == 1
    (tmp_path / "hypura.h").write_text(header)
    settings = (REPOSITORY / "docs" / "Doxyfile").read_text()
    settings += f"INPUT = {tmp_path / 'hypura.h'}\nUSE_MDFILE_AS_MAINPAGE =\nOUTPUT_DIRECTORY = {tmp_path}\n"
    (tmp_path / "Doxyfile").write_text(settings)
    assert "not documented" in run(["doxygen", tmp_path / "Doxyfile"], status=1).stderr
