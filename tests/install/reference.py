"""What the examples must print, computed from the files by numpy and the gguf package."""

import re
from functools import cache
from pathlib import Path

import gguf
import numpy as np

EXPERT = re.compile(r"blk\.\d+\.ffn_(gate|up|down|gate_up)_exps\.weight")


def files_of(model: Path) -> list[Path]:
    """All files of a model, given the first."""
    split = re.fullmatch(r"(.*)-00001-of-(\d{5})\.gguf", model.name)
    if not split:
        return [model]
    return [model.with_name(f"{split[1]}-{number:05}-of-{split[2]}.gguf") for number in range(1, int(split[2]) + 1)]


def tensors_of(model: Path) -> list[gguf.ReaderTensor]:
    return [tensor for file in files_of(model) for tensor in gguf.GGUFReader(file).tensors]


def blocks_of(tensor: gguf.ReaderTensor) -> np.ndarray:
    """The bytes of each expert; of the tensor, if it has none."""
    count = int(tensor.shape[2]) if EXPERT.fullmatch(tensor.name) else 1
    return tensor.data.reshape(-1).view(np.uint8).reshape(count, -1)


@cache
def checksum(model: Path) -> tuple[str, int]:
    """What examples/stream_all.c defines, and of how many bytes."""
    total = byte_count = 0
    for number, tensor in enumerate(tensors_of(model)):
        for expert, block in enumerate(blocks_of(tensor)):
            words = np.concatenate([block, np.zeros(-len(block) % 8, np.uint8)]).view("<u8")
            factors = np.arange(len(words), dtype=np.uint64) * np.uint64(2) + np.uint64(1)
            total += int((words * factors).sum(dtype=np.uint64)) * (2 * (number << 32 | expert) + 1)
            byte_count += len(block)
    return f"{total % 2**64:016x}", byte_count


def byte_sum(model: Path, streamed: re.Pattern) -> int:
    """What the host of docs/EMBEDDING.md adds up."""
    return sum(int(blocks_of(tensor).sum(dtype=np.uint64)) for tensor in tensors_of(model) if streamed.fullmatch(tensor.name))


@cache
def expert_layer(model: Path, layer: int, used: int) -> np.ndarray:
    """What examples/expert_layer.cpp computes, in double precision."""
    named = {tensor.name: tensor for tensor in tensors_of(model)}

    def matrices(part: str) -> np.ndarray:
        tensor = named[f"blk.{layer}.ffn_{part}.weight"]
        return gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)

    router, gate, up, down = (matrices(part) for part in ("gate_inp", "gate_exps", "up_exps", "down_exps"))
    outputs = []
    for t in range(4):
        x = np.sin((t + 1.0) * np.arange(1, router.shape[1] + 1)).astype(np.float32).astype(np.float64)
        logits = router @ x
        chosen = np.argsort(-logits)[:used]
        weights = np.exp(logits[chosen] - logits[chosen].max())
        weights /= weights.sum()
        gated = [gate[expert] @ x for expert in chosen]
        hidden = [g / (1 + np.exp(-g)) * (up[expert] @ x) for g, expert in zip(gated, chosen)]
        outputs.append(sum(weight * (down[expert] @ h) for weight, expert, h in zip(weights, chosen, hidden)))
    return np.array(outputs)
