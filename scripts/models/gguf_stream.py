"""Write a GGUF file piece by piece, so that a file larger than memory can be made.

`gguf.GGUFWriter` writes the header and the metadata. Tensor data is not handed to it: every tensor is declared with a function that
yields its bytes in chunks, and `StreamedGguf.write` pulls one chunk at a time. The file appears under its final name only when it is complete.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import gguf
import numpy as np


def tensor_bytes(shape: Sequence[int], tensor_type: gguf.GGMLQuantizationType) -> int:
    """Size in the file of a tensor whose shape is given in numpy order (the row, ggml's ne[0], last)."""
    block_elements, block_bytes = gguf.GGML_QUANT_SIZES[tensor_type]
    if shape[-1] % block_elements:
        raise ValueError(f"{tensor_type.name} stores {block_elements} values a block, rows of {shape[-1]} do not divide into it")
    elements = 1
    for extent in shape:
        elements *= extent
    return elements // block_elements * block_bytes


@dataclass(frozen=True)
class DeclaredTensor:
    """A tensor of the output: its place in the header, and where its bytes will come from."""

    name: str
    shape: tuple[int, ...]
    tensor_type: gguf.GGMLQuantizationType
    make_chunks: Callable[[], Iterable[np.ndarray]]


class StreamedGguf:
    """A GGUF file to be: fill `metadata`, call `add` for every tensor in file order, then `write` once."""

    def __init__(self, path: Path, architecture: str, file_count: int = 1):
        self.path = Path(path)
        self.file_count = file_count
        self.metadata = gguf.GGUFWriter(None, architecture)
        self.tensors: list[DeclaredTensor] = []

    def add(
        self,
        name: str,
        shape: Sequence[int],
        tensor_type: gguf.GGMLQuantizationType,
        make_chunks: Callable[[], Iterable[np.ndarray]],
    ) -> None:
        self.tensors.append(DeclaredTensor(name, tuple(int(extent) for extent in shape), tensor_type, make_chunks))

    def tensor_bytes(self) -> int:
        """What the tensors declared so far will take."""
        return sum(tensor_bytes(tensor.shape, tensor.tensor_type) for tensor in self.tensors)

    def require_room(self, remedy: str) -> None:
        """Exit with the remedy when the disk has no room for the tensors."""
        needed_bytes = self.tensor_bytes()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        free_bytes = shutil.disk_usage(self.path.parent).free
        if needed_bytes > free_bytes:
            raise SystemExit(f"error: {self.path} needs {needed_bytes / 1e9:.1f} GB and {free_bytes / 1e9:.1f} GB are free; {remedy}")

    def write(self) -> list[Path]:
        """Write everything and return the paths of the files, in the order of their numbers if there are several."""
        writer = self.metadata
        if self.file_count > 1:
            writer.split_max_tensors = ceil(len(self.tensors) / self.file_count)
        for tensor in self.tensors:
            byte_count = tensor_bytes(tensor.shape, tensor.tensor_type)
            writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), byte_count, raw_dtype=tensor.tensor_type)
        if len(writer.tensors) != self.file_count:
            raise ValueError(f"{len(self.tensors)} tensors cannot be spread over {self.file_count} files")

        self.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.path.parent, prefix=".unfinished-") as directory:
            unfinished = Path(directory) / self.path.name
            writer.write_header_to_file(unfinished)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            try:
                self._write_data()
            finally:
                writer.close()
            names = [path.name for path in writer.format_shard_names(self.path)]
            for name in names:
                os.replace(Path(directory) / name, self.path.parent / name)
        return [self.path.parent / name for name in names]

    def _write_data(self) -> None:
        declared = iter(self.tensors)
        for file, infos in zip(self.metadata.fout, self.metadata.tensors, strict=True):
            self.metadata.write_padding(file, file.tell())
            for _ in infos:
                tensor = next(declared)
                wanted = tensor_bytes(tensor.shape, tensor.tensor_type)
                written = 0
                for chunk in tensor.make_chunks():
                    written += file.write(np.ascontiguousarray(chunk).data)
                if written != wanted:
                    raise ValueError(f"{tensor.name}: {written} bytes were produced, its shape and type need {wanted}")
                self.metadata.write_padding(file, written)


def copy_metadata(source: gguf.GGUFReader, target: gguf.GGUFWriter, leave_out: Iterable[str] = ()) -> None:
    """Copy every key of `source` (hyper-parameters, tokenizer, chat template) except those in `leave_out`."""
    # The reader invents the GGUF.* fields; the writer adds the architecture itself; split.* would describe the source's files.
    skipped = {"general.architecture", *leave_out}
    for key, field in source.fields.items():
        if key in skipped or key.startswith(("GGUF.", "split.")):
            continue
        is_array = field.types[0] == gguf.GGUFValueType.ARRAY
        if is_array and len(field.types) < 2:
            continue  # an empty array: the file does not say of what, and the writer cannot express it
        target.add_key_value(key, field.contents(), field.types[0], sub_type=field.types[-1] if is_array else None)


def open_source(path: Path) -> gguf.GGUFReader:
    """Open a single-file GGUF model for reading; exits with a message that names the file if it is not one."""
    if not Path(path).is_file():
        raise SystemExit(f"error: {path}: no such file")
    try:
        source = gguf.GGUFReader(path)
    except ValueError as error:
        raise SystemExit(f"error: {path}: not a readable GGUF file: {error}") from error
    split_count = source.get_field("split.count")
    if split_count is not None and split_count.contents() > 1:
        raise SystemExit(f"error: {path}: is one of {split_count.contents()} files; join them first with llama-gguf-split --merge")
    return source
