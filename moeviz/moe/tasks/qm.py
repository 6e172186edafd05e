"""A reader of Qt's compiled translations (.qm), without Qt.

A file is 16 magic bytes and then sections: a tag (1 byte), a length (4, big-endian) and that many bytes. The section
"hashes" holds pairs (4 bytes hash, 4 bytes offset into the section "messages"); a message is a run of fields, each a
tag and its bytes (QTranslator, qtbase/src/corelib/kernel/qtranslator.cpp).
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from moeviz.domain.messages import UserError

MAGIC = bytes.fromhex("3cb86418caef9c95cd211cbf60a1bddd")
MAX_BYTES = 16_000_000
_HASHES, _MESSAGES = 0x42, 0x69
_END, _SOURCE16, _TRANSLATION, _CONTEXT16, _OBSOLETE1, _SOURCE, _CONTEXT, _COMMENT, _OBSOLETE2 = range(1, 10)
_NOTHING = 0xFFFFFFFF  # the length of an empty translation


class Message(NamedTuple):
    """One string of a program. `translations` are more than one where the language has plural forms."""

    context: str
    source: str
    comment: str
    translations: tuple[str, ...]


def read(path: Path) -> list[Message]:
    """The messages of a file that name their source string. UserError with one sentence if it is no such file."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"The translations {path} cannot be read: {error.strerror}.") from None
    try:
        return list(parse(raw))
    except ValueError as error:
        raise UserError(f"{path} is no Qt translation file, or damaged: {error}.") from None


def parse(raw: bytes) -> Iterator[Message]:
    """The messages of a file's bytes, in the order of their hashes. ValueError where it is not as the format says."""
    if len(raw) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES // 10**6} MB")
    if raw[: len(MAGIC)] != MAGIC:
        raise ValueError("it does not begin as one")
    sections = _sections(raw)
    hashes, messages = sections.get(_HASHES, b""), sections.get(_MESSAGES, b"")
    if len(hashes) % 8:
        raise ValueError("its table of hashes is cut short")
    for _, offset in struct.iter_unpack(">II", hashes):
        message = _message(messages, offset)
        if message.source:
            yield message


def _sections(raw: bytes) -> dict[int, bytes]:
    found, place = dict[int, bytes](), len(MAGIC)
    while place < len(raw):
        tag, start, size = raw[place], place + 5, _number(raw, place + 1)
        found[tag] = _bytes(raw, start, size)
        place = start + size
    return found


def _message(raw: bytes, place: int) -> Message:
    text = {_SOURCE: "", _CONTEXT: "", _COMMENT: ""}
    translations: list[str] = []
    while True:
        tag = _bytes(raw, place, 1)[0]
        place += 1
        if tag == _END:
            return Message(text[_CONTEXT], text[_SOURCE], text[_COMMENT], tuple(translations))
        if tag == _OBSOLETE1:
            place += 4
            continue
        if tag not in (_SOURCE16, _TRANSLATION, _CONTEXT16, _SOURCE, _CONTEXT, _COMMENT):
            raise ValueError(f"it holds a field of the unknown kind {tag}")
        size = _number(raw, place)
        value = b"" if size == _NOTHING else _bytes(raw, place + 4, size)
        place += 4 + len(value)
        if tag == _TRANSLATION:
            translations.append(value.decode("utf-16-be"))
        elif tag == _SOURCE16:
            text[_SOURCE] = value.decode("utf-16-be")
        elif tag == _CONTEXT16:
            text[_CONTEXT] = value.decode("utf-16-be")
        else:
            text[tag] = value.decode("utf-8")


def _number(raw: bytes, place: int) -> int:
    return int.from_bytes(_bytes(raw, place, 4), "big")


def _bytes(raw: bytes, place: int, size: int) -> bytes:
    if place + size > len(raw):
        raise ValueError("it is cut short")
    return raw[place : place + size]
