"""Turn text into token ids of a GGUF file's byte-level BPE vocabulary, by always taking the longest token that fits.

The ids are not exactly those of the real tokenizer, which applies merges in order of rank, but they spell the same text in whole words
and word parts. That is all that is needed for typical hidden states.
"""

import gguf

from tiny_vocab import BYTE_CHARACTERS


class GreedyTokenizer:
    def __init__(self, source: gguf.GGUFReader):
        model = source.get_field("tokenizer.ggml.model")
        if model is None or model.contents() != "gpt2":
            raise SystemExit("error: the source model's tokenizer is not byte-level BPE (tokenizer.ggml.model = gpt2)")
        tokens = source.get_field("tokenizer.ggml.tokens").contents()
        types = source.get_field("tokenizer.ggml.token_type").contents()
        self.id_of = {token: i for i, token in enumerate(tokens) if types[i] == gguf.TokenType.NORMAL}
        self.longest = max(len(token) for token in self.id_of)

    def __call__(self, text: str) -> list[int]:
        characters = "".join(BYTE_CHARACTERS[byte] for byte in text.encode())
        ids = []
        position = 0
        while position < len(characters):
            for end in range(min(len(characters), position + self.longest), position, -1):
                token = self.id_of.get(characters[position:end])
                if token is not None:
                    ids.append(token)
                    break
            else:
                raise SystemExit(f"error: the vocabulary has no token for {characters[position]!r}")
            position = end
        return ids
