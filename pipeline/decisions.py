"""Decisions by hash: the same document meets the same fate whoever decides, wherever and in which order.

Each decision hashes its own name. With one hash for all of them they would be entangled: the third of a source
that is sampled by its small hashes would also come first in the order.
"""

import hashlib
from fractions import Fraction

HASH_VALUES = 1 << 64


def decision_hash(decision: str, seed: int, subject: str | bytes) -> int:
    """A uniform 64-bit integer for one `decision` ("order", "sample", …) about one subject."""
    content = subject.encode() if isinstance(subject, str) else subject
    key = f"{decision}\0{seed}\0".encode()
    return int.from_bytes(hashlib.blake2b(key + content, digest_size=8).digest(), "big")


def threshold(fraction: Fraction) -> int:
    """Hashes below this are a `fraction` of all: 0 for none, 2**64 for all."""
    return int(fraction * HASH_VALUES)


_ASCII = bytes(range(128))
_ASCII_SPACE = bytes(code for code in range(128) if chr(code).isspace())
_CONTINUATION = bytes(range(0x80, 0xC0))
_SKELETON = bytes(range(0xC0)).lower() + b"\xff" * 0x40
"""ASCII letters in lower case, and one mark for every first byte of another character."""


def text_hash(text: str) -> bytes:
    """16 bytes that two texts share when they differ in the case of letters and in ASCII white space only."""
    encoded = text.encode()
    # Lowering the case of a whole text would take longer than tokenising it: most of a text is ASCII, and that is done
    # as bytes. What is not ASCII follows behind; the marks say where it belongs.
    digest = hashlib.blake2b(encoded.translate(_SKELETON, _ASCII_SPACE + _CONTINUATION), digest_size=16)
    if len(encoded) > len(text):
        digest.update(encoded.translate(None, _ASCII).decode().lower().encode())
    return digest.digest()


def content_id(*parts: object) -> str:
    """20 hexadecimal digits naming whatever `parts` print as: the id of a unit of work."""
    content = "\0".join(map(repr, parts))
    return hashlib.sha256(content.encode()).hexdigest()[:20]
