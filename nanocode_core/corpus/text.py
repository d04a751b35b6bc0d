"""What a document is to the corpus: valid text, a digest that finds its copies, a seeded rank."""

import hashlib


def clean(text: str) -> str:
    """`text` as valid Unicode: surrogate pairs joined, lone surrogates replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def digest(text: str) -> bytes:
    """16 bytes that are equal for texts which differ in white space only."""
    return hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()


def rank(*parts: object) -> float:
    """A number in [0, 1), uniform and fixed for these parts: for seeded orders and splits."""
    joined = "\0".join(p.hex() if isinstance(p, bytes) else str(p) for p in parts)
    return (
        int.from_bytes(hashlib.blake2b(joined.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") / 2**64
    )
