"""Pictures of one colour, which the test projector (scripts/models/make_projector.py) tells apart."""

import base64
import struct
import zlib

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
SIDE = 32

# What a small model answers with the word that it sees.
QUESTION = "Repeat this word."


def png(colour: str) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = (b"\0" + bytes(COLOURS[colour]) * SIDE) * SIDE
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def address(colour: str) -> str:
    return "data:image/png;base64," + base64.b64encode(png(colour)).decode()


def seen_in(text: str) -> set[str]:
    return {colour for colour in COLOURS if colour in text.lower()}
