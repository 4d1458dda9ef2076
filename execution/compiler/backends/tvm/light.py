"""MetaSchedule without the half minute that it usually takes to import.

`tvm.s_tir.tensor_intrin` registers intrinsics of every accelerator there is when it is imported, which takes 40 s and
makes builder processes time out; CPUs need two of its modules. Also what each worker process of the tuner does first.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import signal
import sys
import types
from pathlib import Path
from typing import Any

_NEEDED = ("dot_product_common", "x86")
_PR_SET_PDEATHSIG = 1


def install() -> None:
    """Put a light module in the place of the heavy one. To be called before MetaSchedule is imported."""
    name = "tvm.s_tir.tensor_intrin"
    if name in sys.modules:
        return
    import tvm.s_tir  # noqa: PLC0415

    light = types.ModuleType(name)
    light.__path__ = [str(Path(tvm.s_tir.__file__).parent / "tensor_intrin")]
    light.__package__ = name
    sys.modules[name] = light
    for part in _NEEDED:
        importlib.import_module(f"{name}.{part}")


def begin_worker() -> None:
    """What a builder or runner process does first: stands back, dies with the tuner, imports lightly."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, 19)
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    install()


def run_by_cpu_time(module: Any, _device: Any, _config: Any, repeated: Any) -> list[float]:
    """Seconds of a candidate on one thread, by the CPU's clock, not the wall's: the tuner runs beside the server."""
    import time  # noqa: PLC0415

    function, best = module["main"], []
    for arguments in repeated:
        function(*arguments)
        began = time.process_time()
        function(*arguments)
        once_s = max(time.process_time() - began, 1e-7)
        count = max(1, min(2000, int(0.003 / once_s)))
        rounds = []
        for _ in range(5):
            began = time.process_time()
            for _ in range(count):
                function(*arguments)
            rounds.append((time.process_time() - began) / count)
        best.append(min(rounds))
    return best
