"""Letters that no installed font has: a reader sees boxes in their place."""

from collections.abc import Iterable
from functools import lru_cache

from PySide6.QtGui import QFontDatabase

Stretch = tuple[int, int, str]  # first and last character, and a font that has them

_W = QFontDatabase.WritingSystem
_CHINESE = (_W.Japanese, _W.SimplifiedChinese, _W.TraditionalChinese)  # a font for one of them has these letters
_CJK = "Noto Sans CJK"
_SCRIPTS = (
    (0x0370, 0x03FF, (_W.Greek,), "Noto Sans"),
    (0x0400, 0x052F, (_W.Cyrillic,), "Noto Sans"),
    (0x0590, 0x05FF, (_W.Hebrew,), "Noto Sans Hebrew"),
    (0x0600, 0x06FF, (_W.Arabic,), "Noto Sans Arabic"),
    (0x0900, 0x097F, (_W.Devanagari,), "Noto Sans Devanagari"),
    (0x0E00, 0x0E7F, (_W.Thai,), "Noto Sans Thai"),
    (0x3001, 0x30FF, _CHINESE, _CJK),
    (0x3400, 0x9FFF, _CHINESE, _CJK),
    (0xAC00, 0xD7AF, (_W.Korean,), _CJK),
    (0xFF00, 0xFFEF, _CHINESE, _CJK),
)


@lru_cache(maxsize=1)
def lacking() -> tuple[Stretch, ...]:
    """What no font has, asked once: fonts are seldom installed while a program runs."""
    return tuple(
        (first, last, font)
        for first, last, systems, font in _SCRIPTS
        if not any(QFontDatabase.families(system) for system in systems)
    )


def unseen_in_words(texts: Iterable[str]) -> str:
    """How many of the texts have such letters, and what to install; empty if none has."""
    fonts = [
        font
        for text in texts
        if not text.isascii()
        and (font := next((f for c in text for first, last, f in lacking() if first <= ord(c) <= last), ""))
    ]
    if not fonts:
        return ""
    one = len(fonts) == 1
    return (
        f"⚠ {len(fonts)} token{' is a box' if one else 's are boxes'}, as no font has {'its' if one else 'their'} "
        f"letters: install {' and '.join(sorted(set(fonts)))}"
    )
