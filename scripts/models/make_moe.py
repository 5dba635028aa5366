#!/usr/bin/env python3
"""Make a mixture-of-experts model out of a dense llama-architecture GGUF model, without training.

Every FFN becomes a set of experts, each the original plus a small random change, so the text stays that of the source while all experts
differ in their bytes. Routers are random directions fitted to the hidden states of a built-in text, so that the load spreads over the
experts. Tokenizer and chat template are kept; the architecture stays `llama`, whose experts llama.cpp weighs by a softmax that is
normalised over the used ones. The same source, options and seed always give the same bytes.

The source's FFN must be of a type that the gguf package can quantise: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, MXFP4, F16, BF16 or F32.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np

from greedy_tokenizer import GreedyTokenizer
from gguf_stream import StreamedGguf, copy_metadata, open_source
from llama_forward import LlamaForward
from moe_router import chosen_experts, fit_router, load_share, repeat_share
from sample_text import CHECKING_TEXT, FITTING_TEXT

FFN_PARTS = ("gate", "up", "down")


def can_quantise(tensor_type: gguf.GGMLQuantizationType) -> bool:
    block_elements, _ = gguf.GGML_QUANT_SIZES[tensor_type]
    try:
        gguf.quantize(np.ones((1, block_elements), dtype=np.float32), tensor_type)
    except NotImplementedError:
        return False
    return True


def changed_experts(tensor: gguf.ReaderTensor, experts: int, scale: float, seed: list[int]) -> Iterator[np.ndarray]:
    """Yield the bytes of each expert's matrix: the tensor plus uniform noise of `scale` times the root mean square of its values."""
    original = gguf.dequantize(tensor.data, tensor.tensor_type)
    amplitude = np.float32(scale * np.sqrt(3.0) * np.sqrt(np.mean(np.square(original), dtype=np.float64)))
    earlier = [tensor.data.tobytes()]
    for expert in range(experts):
        noise = np.random.Generator(np.random.SFC64([*seed, expert])).random(original.shape, dtype=np.float32)
        encoded = gguf.quantize(original + (2 * noise - 1) * amplitude, tensor.tensor_type)
        if encoded.tobytes() in earlier:
            raise SystemExit(f"error: {tensor.name}: experts came out equal after quantisation; give a larger --scale than {scale}")
        earlier.append(encoded.tobytes())
        yield encoded


def fit_routers(source: gguf.GGUFReader, experts: int, used: int, seed: int) -> list[np.ndarray]:
    """One router for each layer; prints how evenly they spread a text that they were not fitted to."""
    tokenize = GreedyTokenizer(source)
    fitting, checking = tokenize(FITTING_TEXT), tokenize(CHECKING_TEXT)
    print(f"routers are fitted on {len(fitting)} tokens and checked on {len(checking)} others")
    print(f"layer  busiest expert  idlest expert  repeated from previous token   (even: {1 / experts:.3f}; independent: {used / experts:.3f})")
    routers = []
    busiest = []
    for layer, (fitting_states, checking_states) in enumerate(LlamaForward(source).ffn_inputs([fitting, checking])):
        # the first token of a sequence serves attention as a resting place and has a state like no other
        router = fit_router(fitting_states[1:], experts, np.random.default_rng([seed, layer]))
        chosen = chosen_experts(checking_states[1:], router, used)
        share = load_share(chosen, experts)
        print(f"{layer:5}  {share.max():14.3f}  {share.min():13.3f}  {repeat_share(chosen):28.3f}")
        busiest.append(share.max())
        routers.append(router)
    print(f"busiest expert over all layers: {np.mean(busiest):.3f} on average, {np.max(busiest):.3f} at worst")
    return routers


def make_moe(source_path: Path, destination: Path, experts: int, used: int, scale: float, seed: int) -> None:
    source = open_source(source_path)
    architecture = source.get_field("general.architecture").contents()
    if architecture != "llama":
        raise SystemExit(f"error: {source_path}: the architecture is {architecture}, only llama can be made into a MoE here")
    if source.get_field("llama.expert_count") is not None:
        raise SystemExit(f"error: {source_path}: is a MoE already")
    for tensor_type in {tensor.tensor_type for tensor in source.tensors if ".ffn_" in tensor.name}:
        if not can_quantise(tensor_type):
            raise SystemExit(f"error: {source_path}: its FFN is of type {tensor_type.name}, which gguf cannot quantise; see --help for those it can")
    routers = fit_routers(source, experts, used, seed)

    output = StreamedGguf(destination, architecture)
    copy_metadata(source, output.metadata, leave_out=["general.name", "general.size_label"])
    name = source.get_field("general.name")
    output.metadata.add_name(f"{name.contents() if name else source_path.stem} as {experts}-expert test MoE")
    output.metadata.add_expert_count(experts)
    output.metadata.add_expert_used_count(used)
    alignment = source.get_field("general.alignment")
    if alignment is not None:
        output.metadata.data_alignment = alignment.contents()

    for number, tensor in enumerate(source.tensors):
        layer, _, part = tensor.name.removesuffix(".weight").rpartition(".ffn_")
        shape = [int(extent) for extent in reversed(tensor.shape)]
        if part not in FFN_PARTS:
            output.add(tensor.name, shape, tensor.tensor_type, lambda tensor=tensor: [tensor.data])
            continue
        output.add(
            f"{layer}.ffn_{part}_exps.weight",
            [experts, *shape],
            tensor.tensor_type,
            lambda tensor=tensor, number=number: changed_experts(tensor, experts, scale, [seed, number]),
        )
        if part == "gate":
            router = routers[int(layer.removeprefix("blk."))]
            output.add(f"{layer}.ffn_gate_inp.weight", router.shape, gguf.GGMLQuantizationType.F32, lambda router=router: [router])
    output.write()
    print(f"{destination}: {destination.stat().st_size} bytes, {experts} experts of which {used} are used")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SRC.gguf", help="a dense model of the llama architecture, e.g. SmolLM2-135M in Q4_1")
    parser.add_argument("destination", type=Path, metavar="DST.gguf", help="where to write the MoE")
    parser.add_argument("--experts", type=int, default=8, help="experts in each layer (default 8)")
    parser.add_argument("--used", type=int, default=2, help="experts that each token uses (default 2)")
    parser.add_argument("--scale", type=float, default=0.02, help="size of the change, relative to the weights of a matrix (default 0.02)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the changes and the routers (default 1)")
    arguments = parser.parse_args()
    if not 1 <= arguments.used <= arguments.experts:
        parser.error("--used must lie between 1 and --experts")
    if arguments.scale <= 0:
        parser.error("--scale must be positive, else all experts would be equal")
    make_moe(arguments.source, arguments.destination, arguments.experts, arguments.used, arguments.scale, arguments.seed)


if __name__ == "__main__":
    main()
