"""The byte-level alphabet: how BPE vocabularies spell raw bytes as printable characters (GPT-2).

Bytes that are printable in Latin-1 stand for themselves; the other 68 are numbered upwards from
U+0100 in byte order. A token's string in `tokenizer.json` is spelled in these characters, so its
length says nothing about bytes: map it back first.
"""

from functools import cache


@cache
def alphabet() -> tuple[str, ...]:
    """The character that stands for each byte, by byte value."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + n) for n, byte in enumerate(others)}
    return tuple(table[byte] for byte in range(256))


@cache
def _bytes_by_character() -> dict[str, int]:
    return {character: byte for byte, character in enumerate(alphabet())}


def to_bytes(spelled: str) -> bytes | None:
    """The raw bytes of a token spelled in the alphabet; None where a character is not in it."""
    table = _bytes_by_character()
    try:
        return bytes(table[character] for character in spelled)
    except KeyError:
        return None
