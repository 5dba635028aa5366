"""Makes the modules of scripts/ known to their tests."""

import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path += [str(SCRIPTS), str(SCRIPTS / "models"), str(SCRIPTS / "bench")]
