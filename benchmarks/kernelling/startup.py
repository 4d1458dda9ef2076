"""What a serving process pays for kernels: compiling, imports, loading, and one call beyond its arithmetic."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.kernelling.measure import smallest
from benchmarks.kernelling.timing import interleaved

_LOAD = """
import sys, time; import torch; t = time.perf_counter(); import tvm_ffi; a = time.perf_counter()
from pathlib import Path; from execution.compiler.backends.tvm import TemplateBackend, families
from execution.compiler.port import Bucket
s = families.rms_norm(rows=Bucket(1, 8), hidden=8, eps=1e-5, source=False); b = TemplateBackend()
r = b.recipes(s)[0]; c = time.perf_counter(); k = b.load(s, r, Path(sys.argv[1]))
k(torch.ones(1, 8)); print(a - t, time.perf_counter() - c, 'tvm' in sys.modules)
"""


def rows_of(scratch: Path) -> list[dict[str, Any]]:
    """Milliseconds. Raises RuntimeError where loading a kernel imports the compiler."""
    import torch  # noqa: PLC0415

    smallest(scratch / "warm")  # imports tvm
    began = time.perf_counter()
    kernel, x = smallest(scratch / "start")
    rows = [{"case": "compile rms_norm, and load it", "ms": 1e3 * (time.perf_counter() - began)}]
    done = subprocess.run(  # noqa: S603 - this interpreter, our own text
        [sys.executable, "-c", _LOAD, str(scratch / "start" / "smallest")],
        capture_output=True,
        text=True,
        check=True,
    )
    imported, loaded, heavy = done.stdout.split()
    rows.append({"case": "import tvm_ffi in a new process (tvm itself: no)", "ms": 1e3 * float(imported)})
    rows.append({"case": "load there, first call included", "ms": 1e3 * float(loaded)})
    if heavy != "False":
        raise RuntimeError("loading a kernel imported tvm")
    out = torch.empty(1, 8)
    taken = interleaved({"kernel": lambda: kernel(x), "function": lambda: kernel.function(x, out)}, 15)
    rows.append({"case": "one call, result allocated", "ms": 1e3 * taken["kernel"]})
    rows.append({"case": "one call of the bare function", "ms": 1e3 * taken["function"]})
    return rows
