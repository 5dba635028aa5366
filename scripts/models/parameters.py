"""Writes a model's parameters as GGUF metadata, each as the type that llama.cpp expects of such a value."""

from typing import Any

import gguf


class Wide(list):
    """Numbers of 64 bits, which llama.cpp wants of few keys."""


def add_parameters(writer: gguf.GGUFWriter, architecture: str, parameters: dict[str, Any]) -> None:
    """Add every parameter, below the architecture's name unless it is the tokenizer's."""
    for key, value in parameters.items():
        _add(writer, key if key.startswith("tokenizer.") else f"{architecture}.{key}", value)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):  # before int: Python counts a bool as an int
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, Wide):
        writer.add_key_value(key, list(value), gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT64)
    else:
        # Without a type the writer makes signed numbers of integers, which llama.cpp refuses for most keys.
        unsigned = all(isinstance(element, int) and not isinstance(element, bool) for element in value)
        writer.add_key_value(key, list(value), gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT32 if unsigned else None)
