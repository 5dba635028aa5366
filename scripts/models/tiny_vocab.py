"""A byte-level vocabulary small enough for tiny models: any text can be tokenised, nothing has to be downloaded.

It is llama.cpp's "gpt2" (BPE) tokenizer with the 256 byte tokens, three merges (llama.cpp insists on a merge list) and two control
tokens. Token ids 0 to 255 are the bytes in the order of `BYTE_CHARACTERS`.
"""

import gguf


def _byte_characters() -> list[str]:
    """GPT-2's printable stand-in for each byte value: itself if it is printable Latin-1, else a character from U+0100 on."""
    characters = []
    replacements = 0
    for byte in range(256):
        if 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or 0xAE <= byte <= 0xFF:
            characters.append(chr(byte))
        else:
            characters.append(chr(0x100 + replacements))
            replacements += 1
    return characters


BYTE_CHARACTERS = _byte_characters()
SPACE = BYTE_CHARACTERS[ord(" ")]
MERGES = [f"{SPACE} t", "h e", f"{SPACE}t he"]
TOKENS = BYTE_CHARACTERS + [merge.replace(" ", "") for merge in MERGES] + ["<|start|>", "<|end|>"]
START_TOKEN = TOKENS.index("<|start|>")
END_TOKEN = TOKENS.index("<|end|>")


def is_printable(token: int) -> bool:
    """Whether a token's text is plain ASCII. The models favour such tokens, so that what they generate can be read and compared."""
    return 0x20 <= token <= 0x7E or token == ord("\n") or 256 <= token < START_TOKEN


def add_vocabulary(writer: gguf.GGUFWriter) -> None:
    control = {START_TOKEN, END_TOKEN}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([gguf.TokenType.CONTROL if i in control else gguf.TokenType.NORMAL for i in range(len(TOKENS))])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(START_TOKEN)
    writer.add_eos_token_id(END_TOKEN)
    writer.add_add_bos_token(False)
    writer.add_vocab_size(len(TOKENS))
