"""The tensors of a described architecture: llama.cpp tells which there are; here it is decided what is in them.

llama.cpp is asked through ask_tensors.cpp, compiled against a build of it (`make llama`).
"""

import os
import re
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import gguf
from gguf import GGMLQuantizationType as Type

import tiny_vocab
from archs.spec import Architecture
from parameters import add_parameters
from tiny_layers import Tensor

REPOSITORY = Path(__file__).resolve().parents[3]

Shapes = dict[str, tuple[int, ...]]  # in numpy order: the row comes last

# Optional everywhere and absent from nearly every model: scales of some quantisations, long and short RoPE factors.
USUALLY_ABSENT = r"\.(scale|input_scale)$|rope_(freqs|factors_\w+)\."

# Matrices that are quantised: those that llama.cpp multiplies with. Anything else keeps the type that it is computed in.
EXPERT_MATRIX = re.compile(r"blk\.\d+\.(ffn_(gate|up|down|gate_up)_(ch)?exps|attn_v_exps)\.weight")
MATRIX = re.compile(
    r"(blk|enc\.blk|dec\.blk)\.\d+\.("
    r"(cross_)?attn_(q|k|v|o|qkv|output|gate|q_a|q_b|kv|kv_a_mqa|kv_b|k_b|v_b|output_a|output_b)"
    r"|ffn_(gate|up|down)(_shexp)?|ffn_(latent|routed)_(down|up)|ssm_(in|out)|shortconv\.(in|out)_proj"
    r"|nextn\.eh_proj|laurel_(l|r)|proj|inp_gate)\.weight"
)
TABLE = re.compile(r"per_layer_token_embd\.weight")

# What a name says of the numbers: mean and deviation. The first that matches counts.
CONTENT = [
    (re.compile(r"ssm_a(\.weight)?$"), -1.0, 0.1),  # below zero: a state decays
    (re.compile(r"ssm_d(\.weight)?$|layer_output_scale"), 1.0, 0.1),
    (re.compile(r"norm\w*\.weight$|\.scale$|_scale\.weight$"), 1.0, 0.1),
    (re.compile(r"\.bias$|_base\.weight$|altup_\w+_coef"), 0.0, 0.1),
    (re.compile(r"attn_sinks"), 0.0, 0.5),
]

# What a layer adds to the residual comes out of these.
OUT_OF_A_LAYER = re.compile(
    r"blk\.\d+\.(attn_(output(_b)?|o)|cross_attn_o|ffn_down(_exps|_shexp|_chexps)?|ffn_(latent|routed)_up|ssm_out"
    r"|shortconv\.out_proj|proj|laurel_r)\.(weight|bias)$"
)
QUIET = 1e-3


class Asker:
    """The compiled ask_tensors.cpp."""

    def __init__(self, build: Path, folder: Path):
        self.path = folder / "ask_tensors"
        self.folder = folder
        source = REPOSITORY / "build" / "llama-src"
        libraries = build / "bin"
        command = ["c++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-o", self.path]
        command += [Path(__file__).with_name("ask_tensors.cpp"), "-I", source / "include", "-I", source / "ggml" / "include"]
        command += ["-L", libraries, "-lllama", "-lggml", "-lggml-base", f"-Wl,-rpath,{libraries}"]
        subprocess.run(list(map(str, command)), check=True)

    def shapes(self, architecture: Architecture) -> Shapes:
        """Every tensor that llama.cpp knows of such a model. Exits with llama.cpp's words when it refuses the parameters."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            metadata = Path(folder) / "metadata.gguf"
            writer = gguf.GGUFWriter(metadata, architecture.architecture)
            add_parameters(writer, architecture.architecture, architecture.parameters)
            tiny_vocab.add_vocabulary(writer)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            writer.close()
            environment = os.environ | {"HYPURA": "off"}
            answer = subprocess.run([self.path, metadata], capture_output=True, text=True, env=environment)
        if answer.returncode != 0:
            raise SystemExit(f"error: llama.cpp refuses the model {architecture.name}:\n{answer.stderr}")
        shapes = {}
        for line in answer.stdout.splitlines():
            name, *extents = line.split("\t")
            shapes[name] = _without_ones(tuple(int(extent) for extent in reversed(extents)))
        return shapes


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the ones in front, which GGUF does not store."""
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


def tensors_of(architecture: Architecture, asker: Asker, quiet: bool) -> list[Tensor]:
    """The tensors in file order. Those of a quiet model add next to nothing to the residual."""
    shapes = _chosen(architecture, asker.shapes(architecture))
    if architecture.unused_nextn:
        shapes |= _nextn_layer(architecture, shapes)
    tensors = [_tensor(architecture, name, shape) for name, shape in shapes.items()]
    return [_quiet(architecture, tensor) for tensor in tensors] if quiet else tensors


def _chosen(architecture: Architecture, shapes: Shapes) -> Shapes:
    """Without what such models do not have. llama.cpp makes gate and up one tensor where it may; most files have two."""
    chosen = {}
    for name, shape in shapes.items():
        keep = architecture.keep and re.search(architecture.keep, name)
        if not keep and re.search(USUALLY_ABSENT, name):
            continue
        if not keep and architecture.leave_out and re.search(architecture.leave_out, name):
            continue
        if not keep and ".ffn_gate_up_exps." in name:
            experts, rows, *rest = shape
            for part in ("gate", "up"):
                chosen[name.replace("gate_up", part)] = (experts, rows // 2, *rest)
            continue
        chosen[name] = shape
    return chosen


def _nextn_layer(architecture: Architecture, shapes: Shapes) -> Shapes:
    """A layer like the last one, with what makes a guess at one token more out of it."""
    width, layers = architecture.parameters["embedding_length"], architecture.parameters["block_count"]
    last, new = f"blk.{layers - 1}.", f"blk.{layers}."
    nextn = {name.replace(last, new): shape for name, shape in shapes.items() if name.startswith(last)}
    return nextn | {
        f"{new}nextn.eh_proj.weight": (width, 2 * width),
        f"{new}nextn.enorm.weight": (width,),
        f"{new}nextn.hnorm.weight": (width,),
        f"{new}nextn.shared_head_norm.weight": (width,),
    }


def _type(name: str, shape: tuple[int, ...]) -> Type:
    if name in ("token_embd.weight", "output.weight"):
        return Type.F16
    if shape[-1] % 32:
        return Type.F32
    if EXPERT_MATRIX.fullmatch(name):
        return Type.Q8_0 if "down" in name else Type.Q4_0
    return Type.Q8_0 if MATRIX.fullmatch(name) or TABLE.fullmatch(name) else Type.F32


def _tensor(architecture: Architecture, name: str, shape: tuple[int, ...]) -> Tensor:
    if name.endswith(".ffn_gate_tid2eid.weight"):
        return Tensor(name, shape, Type.I32, below=architecture.parameters["expert_count"])
    if name == "token_embd.weight":
        return Tensor(name, shape, Type.F16, deviation=1.0)
    if name.endswith(".ffn_gate_inp.weight"):
        # twice the usual: the logits of a token then differ by more than one, and its experts get unequal weights
        return Tensor(name, shape, deviation=2.0 * shape[-1] ** -0.5)
    for pattern, mean, deviation in CONTENT:
        if pattern.search(name):
            return Tensor(name, shape, mean=mean, deviation=deviation)
    return Tensor(name, shape, _type(name, shape))


def _quiet(architecture: Architecture, tensor: Tensor) -> Tensor:
    is_norm = architecture.norms_after and re.search(rf"blk\.\d+\.({architecture.norms_after})\.weight$", tensor.name)
    if is_norm:
        return replace(tensor, mean=tensor.mean * QUIET, deviation=tensor.deviation * QUIET)
    if not OUT_OF_A_LAYER.search(tensor.name):
        return tensor
    usual = tensor.shape[-1] ** -0.5 if tensor.deviation is None else tensor.deviation
    return replace(tensor, deviation=usual * QUIET)
