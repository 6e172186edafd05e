"""Writing a small text file so that nobody ever finds half of it."""

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """In UTF-8, first under another name in the same folder. OSError if the disk refuses; then what was there stays,
    and nothing is left behind."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
