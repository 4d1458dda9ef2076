"""The `native` back end: a whole decode step as C++, compiled by the machine's own compiler.

backend.compile(subject, recipe, folder)     decode.cpp and decode.so
backend.load(subject, recipe, folder)        DecodeLibrary, whose `prepare` packs a model's weights
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from execution.compiler.port import Bucket, CompileError, Recipe, Subject, TensorSpec
from execution.live.decode.kernel import DecodeLibrary
from execution.live.decode.shape import DecodeShape, NotDecodableError
from execution.live.decode.source import BODY, Tile, source_of

OP = "decode_step"
FLAGS = (
    "-O3", "-march=native", "-std=c++17", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math",
    "-shared", "-fPIC", "-fopenmp",
)  # fmt: skip
_LIMIT_S = 600.0
"""Of one compilation, two seconds as a rule; in the background it may have to wait for the processor."""
SOURCE, LIBRARY = "decode.cpp", "decode.so"
_TEMPLATE = hashlib.sha256(BODY.encode()).hexdigest()[:16]


def decode_subject(shape: DecodeShape, rows: int, threads: int) -> Subject:
    """The whole step of one model shape for up to `rows` rows; KV is an input that it writes to."""
    return Subject(
        op=OP,
        inputs=(TensorSpec((rows,), "int64"), TensorSpec((rows,), "int64"), TensorSpec((rows,), "int64")),
        params=(),
        bucket=Bucket(1, rows),
        threads=threads,
        attrs=shape.attrs(),
    )


class NativeBackend:
    """g++, c++ or clang++, whichever is there."""

    name = "native"

    def unavailable(self) -> str | None:
        """Why it cannot be used on this machine."""
        return None if compiler() else "no C++ compiler: neither $CXX nor g++, c++ or clang++ is on the path"

    def versions(self) -> Mapping[str, str]:
        """Of the compiler and our own text; what `-march=native` means is part of the cache's machine."""
        return {"compiler": _identity(compiler() or ""), "source": _TEMPLATE, "flags": " ".join(FLAGS)}

    def recipes(self, subject: Subject) -> Sequence[Recipe]:
        """Tiles, the most promising first: few rows want several panels at once, many want many rows."""
        if subject.op != OP or subject.device != "cpu":
            return ()
        tiles = [
            Tile(6, 4, 16),
            Tile(6, 4, 0),
            Tile(6, 2, 16),
            Tile(5, 4, 16),
            Tile(4, 3, 32),
            Tile(6, 3, 32),
        ]
        return tuple(
            Recipe("native", str(t), (("ahead", t.ahead), ("panels", t.panels), ("rows", t.rows)), "", 3.0)
            for t in tiles
        )

    def compile(self, subject: Subject, recipe: Recipe, folder: Path) -> None:
        """Write source and library into the folder. Raises CompileError."""
        found = compiler()
        if found is None:
            raise CompileError(f"{subject.op}: native: {self.unavailable()}")
        source = folder / SOURCE
        source.write_text(_source(subject, recipe), encoding="utf-8")
        command = [found, *FLAGS, str(source), "-o", str(folder / LIBRARY)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)  # noqa: S603
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CompileError(f"{subject.op}: native: {found}: {error}") from error
        if done.returncode:
            tail = "; ".join(done.stderr.strip().splitlines()[:3])
            raise CompileError(f"{subject.op}: native: {found} ended with {done.returncode}: {tail}")

    def load(self, subject: Subject, recipe: Recipe, folder: Path) -> DecodeLibrary:
        """The library of a folder. Raises CompileError."""
        del recipe
        return DecodeLibrary(_shape(subject), folder / LIBRARY)


def compiler() -> str | None:
    """Path of a C++ compiler; None: there is none."""
    given = os.environ.get("CXX")
    names = [given] if given else ["g++", "c++", "clang++"]
    return next((path for name in names if (path := shutil.which(name))), None)


def _source(subject: Subject, recipe: Recipe) -> str:
    try:
        return source_of(_shape(subject), Tile(**{k: int(v) for k, v in recipe.settings}))
    except (TypeError, ValueError) as error:
        raise CompileError(f"{subject.op}: native: recipe {recipe.name!r}: {error}") from error


def _shape(subject: Subject) -> DecodeShape:
    try:
        return DecodeShape.of_attrs(subject.attrs)
    except NotDecodableError as error:
        raise CompileError(f"{subject.op}: native: {error}") from error


def _identity(path: str) -> str:
    """Of the compiler's file: asking it for its version takes longer than everything else in a cache hit."""
    try:
        real = Path(path).resolve()
        told = real.stat()
    except OSError:
        return "unknown"
    return f"{real} {told.st_size} bytes of {int(told.st_mtime)}"
