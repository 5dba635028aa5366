"""The models that the tests run: where they are, and how many of their bytes can be streamed."""

import os
import re
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import gguf

from programs import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "scripts" / "models"))
from tiny_shapes import SHAPES  # noqa: E402

DIRECTORY = Path(os.environ.get("HYPURA_TEST_MODELS", REPOSITORY / "build" / "models")).absolute()
TRAINED_MOE_PATH = REPOSITORY.parent / "shared" / "models" / "minimoe-64x8-q3_k_s.gguf"

LAYER = r"(enc\.|dec\.)?blk\.\d+\."
EXPERT = re.compile(LAYER + r"(ffn_(gate|up|down|gate_up)_(ch)?exps|attn_v_exps)\.weight")
DENSE = re.compile(LAYER + r"ffn_(gate|up|down)\.weight")
OTHERS = re.compile(
    LAYER + r"(ffn_(gate|up|down)_shexp|ffn_(latent|routed)_(up|down)"
    r"|(cross_)?attn_(q|k|v|o|qkv|output|gate|q_a|q_b|kv|kv_a_mqa|kv_b|k_b|v_b|output_a|output_b)"
    r"|ssm_(in|out|g)|shortconv\.(in|out)_proj)\.weight"
)


@dataclass(frozen=True)
class Model:
    """A GGUF, by its first file."""

    name: str
    path: Path

    @cached_property
    def files(self) -> list[Path]:
        split = re.fullmatch(r"(.*)-00001-of-(\d{5})\.gguf", self.path.name)
        if not split:
            return [self.path]
        stem, count = split.groups()
        return [self.path.with_name(f"{stem}-{number:05}-of-{count}.gguf") for number in range(1, int(count) + 1)]

    @cached_property
    def tensors(self) -> list[gguf.ReaderTensor]:
        return [tensor for file in self.files for tensor in gguf.GGUFReader(file).tensors]

    @cached_property
    def loaded(self) -> list[gguf.ReaderTensor]:
        """All but layers that draft tokens, which a run that does not draft leaves in the file."""
        drafts = {tensor.name.split(".")[1] for tensor in self.tensors if ".nextn." in tensor.name}
        return [tensor for tensor in self.tensors if tensor.name.split(".")[1] not in drafts]

    @cached_property
    def streamable(self) -> list[gguf.ReaderTensor]:
        """The experts; of a dense model, its feed-forward matrices; of one that has none, what it has instead."""
        for pattern in (EXPERT, DENSE, OTHERS):
            found = [tensor for tensor in self.loaded if pattern.fullmatch(tensor.name)]
            if found:
                return found
        return []

    @cached_property
    def streamable_bytes(self) -> int:
        return sum(int(tensor.n_bytes) for tensor in self.streamable)

    @cached_property
    def all_streamable_bytes(self) -> int:
        """With `HYPURA_TENSORS=all`: shared experts and attention as well."""
        patterns = (EXPERT, DENSE, OTHERS)
        return sum(int(tensor.n_bytes) for tensor in self.loaded if any(p.fullmatch(tensor.name) for p in patterns))

    @cached_property
    def other_bytes(self) -> int:
        return sum(int(tensor.n_bytes) for tensor in self.tensors) - self.streamable_bytes

    @cached_property
    def has_experts(self) -> bool:
        return EXPERT.fullmatch(self.streamable[0].name) is not None

    @property
    def streaming_mode(self) -> str:
        return "expert-streaming" if self.has_experts else "dense-streaming"


def tiny(name: str) -> Model:
    file = f"{name}-00001-of-00003.gguf" if name == "split3" else f"{name}.gguf"
    return Model(name, DIRECTORY / "tiny" / file)


SMOLLM2 = Model("smollm2", DIRECTORY / "smollm2.gguf")
SMOLLM2_MOE = Model("smollm2-moe", DIRECTORY / "smollm2-moe.gguf")
TRAINED_MOE = Model("trained-moe", TRAINED_MOE_PATH)
def architecture(name: str) -> Model:
    return Model(name, DIRECTORY / "archs" / f"{name}.gguf")


TINY = [tiny(name) for name in SHAPES]
