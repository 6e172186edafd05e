"""How torch is imported on a thread beside a live window. A plain `import torch` there holds the interpreter for 170 ms
at a stretch while its library is linked, and for 80 ms in each full garbage collection of all that it defines.
"""

import ctypes
import gc
import importlib.util
import os
import sys
from pathlib import Path

_LIBRARIES = {
    "linux": ("libc10.so", "libgomp.so.1", "libtorch_cpu.so"),
    "darwin": ("libc10.dylib", "libtorch_cpu.dylib"),
}


def import_torch() -> None:
    """Import torch and what training needs of it, so that other threads go on meanwhile."""
    if "torch" in sys.modules:
        return
    collecting = gc.isenabled()
    gc.disable()
    try:
        _link()
        import moeviz.moe.training  # noqa: F401 - for its imports
    finally:
        gc.freeze()  # modules live to the end: a later collection need not walk them
        if collecting:
            gc.enable()


def _link() -> None:
    """Have torch's libraries linked by a foreign call, which does not hold the interpreter; torch then finds them."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return
    folder = Path(spec.submodule_search_locations[0], "lib")
    found = [folder / name for name in _LIBRARIES.get(sys.platform, ()) if (folder / name).exists()]
    if not found:
        return  # another platform or build: torch links them itself
    dlopen = ctypes.CDLL(None).dlopen
    dlopen.argtypes, dlopen.restype = (ctypes.c_char_p, ctypes.c_int), ctypes.c_void_p
    for path in found:
        dlopen(os.fsencode(path), os.RTLD_LAZY | os.RTLD_GLOBAL)
