#!/usr/bin/env python3
"""Make a tiny GGUF model with random weights of every architecture that archs/ describes; needs `make llama`.

They are for comparing outputs bit by bit, not for reading. The same name and seed give the same bytes with the same llama.cpp, which is
asked for the tensors. A quiet model's layers add next to nothing to the residual, so what one layer's router gets is what the next one
gets, and a right look-ahead names nearly all of the next layer's experts.
"""

import argparse
import tempfile
from pathlib import Path

from archs.spec import ARCHITECTURES, Architecture
from archs.tensors import REPOSITORY, Asker, tensors_of
from tiny_layers import TinyModel
from tiny_models import write_model


def tiny_model(architecture: Architecture, asker: Asker, quiet: bool) -> TinyModel:
    tensors = tensors_of(architecture, asker, quiet)
    parameters = dict(architecture.parameters)
    if architecture.unused_nextn:
        parameters |= {"block_count": parameters["block_count"] + 1, "nextn_predict_layers": 1}
    return TinyModel(architecture.architecture, parameters, tensors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outdir", type=Path, nargs="?", metavar="OUTDIR", help="where NAME.gguf is written (NAME-quiet.gguf with --quiet)")
    parser.add_argument("names", nargs="*", metavar="NAME", help="which models; all if none is named")
    parser.add_argument("--list", action="store_true", help="print the names, and make nothing")
    parser.add_argument("--quiet", action="store_true", help="make quiet models")
    parser.add_argument("--seed", type=int, default=1, help="another seed gives other weights of the same shapes (default 1)")
    parser.add_argument("--build", type=Path, default=REPOSITORY / "build" / "llama", help="the build of llama.cpp that is asked")
    arguments = parser.parse_args()

    if arguments.list:
        print("\n".join(ARCHITECTURES))
        return
    if arguments.outdir is None:
        parser.error("OUTDIR is missing: name the directory to write to, or use --list")
    unknown = [name for name in arguments.names if name not in ARCHITECTURES]
    if unknown:
        parser.error(f"no model named {', '.join(unknown)}; the names are: {', '.join(ARCHITECTURES)}")

    with tempfile.TemporaryDirectory() as folder:
        asker = Asker(arguments.build, Path(folder))
        for name in arguments.names or ARCHITECTURES:
            model = tiny_model(ARCHITECTURES[name], asker, arguments.quiet)
            file_name = f"{name}-quiet.gguf" if arguments.quiet else f"{name}.gguf"
            for path in write_model(name, model, arguments.outdir / file_name, arguments.seed):
                print(f"{path.stat().st_size:9} {path}")


if __name__ == "__main__":
    main()
