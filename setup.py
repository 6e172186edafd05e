"""The experts in C, for two kinds of processor; without a compiler for them torch computes the same, slower."""

from pathlib import Path
from zlib import crc32

from setuptools import Extension, setup

SOURCE = "moeviz/moe/experts.c"

setup(
    ext_modules=[
        Extension(
            f"moeviz.moe._experts_{name}",
            [SOURCE],
            depends=["setup.py"],
            # of which source a build is, so that none of another one is used: moeviz/moe/compiled.py looks
            define_macros=[("SOURCE_CRC", f"{crc32(Path(SOURCE).read_bytes())}u")],
            extra_compile_args=["-O3", f"-march={level}", "-ffp-contract=fast", "-fopenmp"],
            extra_link_args=["-fopenmp"],
            optional=True,
        )
        for name, level in (("avx512", "x86-64-v4"), ("avx2", "x86-64-v3"))
    ]
)
