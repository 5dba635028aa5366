"""A forward pass of a small dense llama-architecture GGUF model in numpy, to look at what its FFN layers are given as input.

Weights are decoded layer by layer; logits are not computed. Good for a few hundred tokens of a model with some hundred million parameters.
Everything is in double precision, so that results rounded to single precision are the same on every machine.
"""

import gguf
import numpy as np


class LlamaForward:
    def __init__(self, source: gguf.GGUFReader):
        self.tensors = {tensor.name: tensor for tensor in source.tensors}

        def parameter(name, default=None):
            found = source.get_field(f"llama.{name}")
            if found is None and default is None:
                raise SystemExit(f"error: the source model has no llama.{name}; is its architecture llama?")
            return default if found is None else found.contents()

        self.layers = parameter("block_count")
        self.heads = parameter("attention.head_count")
        self.kv_heads = parameter("attention.head_count_kv", self.heads)
        self.head = parameter("rope.dimension_count", parameter("embedding_length") // self.heads)
        self.epsilon = parameter("attention.layer_norm_rms_epsilon")
        self.frequency_base = parameter("rope.freq_base", 10000.0)
        if "rope_freqs.weight" in self.tensors:
            raise SystemExit("error: the source model scales its rotary frequencies (rope_freqs.weight), which is not implemented here")

    def weight(self, name: str) -> np.ndarray:
        tensor = self.tensors[name]
        return gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)

    def ffn_inputs(self, sequences: list[list[int]]) -> list[list[np.ndarray]]:
        """What each layer's FFN (or its router, if there were one) sees: [layer][sequence] arrays of shape (tokens, embedding)."""
        embedding = self.tensors["token_embd.weight"]
        states = [gguf.dequantize(embedding.data[ids], embedding.tensor_type).astype(np.float64) for ids in sequences]
        inputs = []
        for index in range(self.layers):
            layer = f"blk.{index}"
            attention = {part: self.weight(f"{layer}.attn_{part}.weight") for part in ("norm", "q", "k", "v", "output")}
            ffn = {part: self.weight(f"{layer}.ffn_{part}.weight") for part in ("norm", "gate", "up", "down")}
            inputs.append([])
            for i, state in enumerate(states):
                state = state + self._attend(self._normalise(state, attention["norm"]), attention)
                seen = self._normalise(state, ffn["norm"])
                inputs[index].append(seen)
                gate = seen @ ffn["gate"].T
                hidden = gate / (1.0 + np.exp(-gate)) * (seen @ ffn["up"].T)
                states[i] = state + hidden @ ffn["down"].T
        return inputs

    def _normalise(self, state: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return state / np.sqrt(np.mean(state * state, axis=-1, keepdims=True) + self.epsilon) * weight

    def _rotate(self, vectors: np.ndarray) -> np.ndarray:
        """Rotary position embedding on neighbouring pairs, the order that llama GGUF files use. Shape (heads, tokens, head)."""
        frequencies = self.frequency_base ** (-np.arange(0, self.head, 2, dtype=np.float64) / self.head)
        angles = np.arange(vectors.shape[1], dtype=np.float64)[:, None] * frequencies
        cosine, sine = np.cos(angles), np.sin(angles)
        even, odd = vectors[..., 0::2], vectors[..., 1::2]
        return np.stack([even * cosine - odd * sine, even * sine + odd * cosine], axis=-1).reshape(vectors.shape)

    def _attend(self, state: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
        tokens = len(state)

        def heads(part: str, count: int) -> np.ndarray:
            return (state @ weights[part].T).reshape(tokens, count, self.head).transpose(1, 0, 2)

        query = self._rotate(heads("q", self.heads))
        group = self.heads // self.kv_heads
        key = np.repeat(self._rotate(heads("k", self.kv_heads)), group, axis=0)
        value = np.repeat(heads("v", self.kv_heads), group, axis=0)
        scores = query @ key.transpose(0, 2, 1) / np.sqrt(self.head)
        scores[:, np.triu(np.ones((tokens, tokens), dtype=bool), 1)] = -np.inf
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = (scores / scores.sum(axis=-1, keepdims=True)) @ value
        return mixed.transpose(1, 0, 2).reshape(tokens, -1) @ weights["output"].T
