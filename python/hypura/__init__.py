"""libhypura for programs that load llama.cpp themselves: models larger than memory, without a flag.

    import hypura
    hypura.use()            # before llama.cpp is loaded
    import llama_cpp        # built with GGML_BACKEND_DL, as llama.cpp's releases are

The `hypura` command comes with it, and llama.cpp's own programs in `programs()`.
"""

import os
from pathlib import Path

_HERE = Path(__file__).resolve().parent


def backend() -> Path:
    """The backend that a llama.cpp which loads its backends takes: libggml-hypura.so."""
    return _HERE / "backend" / "libggml-hypura.so"


def programs() -> Path:
    """The directory of the hypura command and of llama.cpp's programs, such as llama-server."""
    return _HERE / "bin"


def use() -> Path:
    """Makes each llama.cpp that this process or one that it starts loads from now on take the backend."""
    os.environ["GGML_BACKEND_PATH"] = str(backend())
    return backend()
