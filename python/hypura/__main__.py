"""The `hypura` command, also as `python -m hypura`."""

import os
import sys

from . import programs


def main() -> None:
    command = str(programs() / "hypura")
    os.execv(command, [command, *sys.argv[1:]])


if __name__ == "__main__":
    main()
