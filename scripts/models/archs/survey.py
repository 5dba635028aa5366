"""Which of llama.cpp's architectures multiply with experts, by its sources: what the table of descriptions is held against."""

import re
from pathlib import Path

# What a graph calls when it multiplies with some matrices out of a stack, by ids (GGML_OP_MUL_MAT_ID).
CALLS = re.compile(r"\b(build_moe_ffn|build_lora_mm_id|ggml_mul_mat_id)\s*\(")
NAME = re.compile(r"\{\s*LLM_ARCH_(\w+),\s*\"([^\"]+)\"\s*\}")
# What makes the stacks when a model is loaded; an architecture that borrows a graph may never have any.
STACKS = re.compile(r"LLM_TENSOR_\w+_(CH)?EXPS\b|\bcreate_tensor_gate_up_exps\s*\(|\"lora_a\"")
CASE = re.compile(r"case LLM_ARCH_(\w+):\s*(?://[^\n]*)?\s*return new llama_model_(\w+)\(")
CLASS = re.compile(r"^struct llama_model_(\w+) : public llama_model_(\w+) \{(.*?)^\};", re.MULTILINE | re.DOTALL)
BORROWED_GRAPH = re.compile(r"using graph\w* = llama_model_(\w+)::graph")


def mixture_architectures(source: Path) -> dict[str, str]:
    """The names of those architectures in a tree of llama.cpp, and for each the file below src/models whose graph it runs."""
    names = dict(NAME.findall((source / "src" / "llama-arch.cpp").read_text()))
    cases = CASE.findall((source / "src" / "llama-model.cpp").read_text())
    classes = {name: (base, body) for name, base, body in CLASS.findall((source / "src" / "models" / "models.h").read_text())}
    if not names or not cases or not classes:
        raise ValueError(f"{source}: its sources are laid out in another way; this survey must learn it")
    mixtures = {}
    for constant, class_name in cases:
        graph = _file(source, _graph_class(classes, class_name))
        loader = _file(source, _loader_class(classes, class_name))
        if CALLS.search(graph.read_text()) and STACKS.search(loader.read_text()):
            mixtures[names[constant]] = graph.name
    return mixtures


def _file(source: Path, class_name: str) -> Path:
    path = source / "src" / "models" / f"{class_name.replace('_', '-')}.cpp"
    if not path.exists():
        raise ValueError(f"{path} is missing: where is llama_model_{class_name}?")
    return path


def _graph_class(classes: dict[str, tuple[str, str]], name: str) -> str:
    """The class whose graph this one runs: its own, another's that it names, or its base's."""
    base, body = classes[name]
    borrowed = BORROWED_GRAPH.search(body)
    if borrowed:
        return _graph_class(classes, borrowed.group(1))
    return name if " build_arch_graph(" in body or base not in classes else _graph_class(classes, base)


def _loader_class(classes: dict[str, tuple[str, str]], name: str) -> str:
    """The class that makes this one's tensors: itself or its base."""
    base, body = classes[name]
    return name if "void load_arch_tensors(" in body or base not in classes else _loader_class(classes, base)
