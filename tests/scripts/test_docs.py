"""What the documents name exists: a source file that was moved or renamed takes its mentions along."""

import re
import subprocess
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
SOURCE = re.compile(r"`([\w./-]+\.(?:rs|cpp|h|c|py|cmake))`")

# llama.cpp's own, and what whoever adds something is to write
OTHERS = {"llama.h", "vendor/llama.cpp", "src/llama-model.cpp", "src/llama-moe-cache.cpp", "clip.cpp"}
PLACEHOLDER = "NAME"


def tracked() -> list[str]:
    listing = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=REPO, check=True, capture_output=True, text=True)
    return [f"/{path}" for path in listing.stdout.splitlines() if (REPO / path).exists()]


def unknown_names(text: str, files: list[str]) -> set[str]:
    names = {name for name in SOURCE.findall(text) if name not in OTHERS and PLACEHOLDER not in name}
    return {name for name in names if not any(file.endswith(f"/{name}") for file in files)}


def test_source_files_that_documents_name_exist() -> None:
    files = tracked()
    documents = [*(REPO / "docs").glob("*.md"), *REPO.glob("*.md")]
    assert len(documents) > 10
    for document in documents:
        assert not unknown_names(document.read_text(), files), document.name


def test_a_file_that_is_gone_is_noticed() -> None:
    assert unknown_names("see `stream/no_such_file.rs` and `stream/core.rs`", tracked()) == {"stream/no_such_file.rs"}
