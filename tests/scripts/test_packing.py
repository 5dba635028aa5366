"""scripts/dist.py: what lies beside a new tarball, and what its README says of glibc."""

import shutil
from pathlib import Path

import dist


def test_of_a_kind_of_machine_one_version_is_there(tmp_path: Path) -> None:
    others = ["hypura-1.0-linux-aarch64.tar.gz", "hypura-1.0-py3-none-linux_x86_64.whl", "hypura_1.0_amd64.deb"]
    for name in ["hypura-0.9-linux-x86_64.tar.gz", "hypura-1.0-linux-x86_64.tar.gz", *others]:
        (tmp_path / name).touch()
    (tmp_path / "hypura-0.9-linux-x86_64" / "bin").mkdir(parents=True)
    dist.remove_earlier(tmp_path, "linux-x86_64")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)
    dist.remove_earlier(tmp_path / "none", "linux-x86_64")


def test_readme_names_a_glibc_where_one_is_needed(tmp_path: Path, monkeypatch) -> None:
    shutil.copy2(shutil.which("readelf"), tmp_path)
    assert "It needs glibc 2." in dist.readme(tmp_path, "x86_64")
    monkeypatch.setattr(dist, "glibc_version", lambda paths: None)
    assert "It needs glibc, libstdc++" in dist.readme(tmp_path, "x86_64")
