"""Kernels that the tests run, in this process and in others."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np


def mix(*values: Any) -> Any:
    """Depends on each of its inputs and their order."""
    total = np.full(64, 1.0)
    for number, value in enumerate(values):
        total = total * 0.5 + (number + 1) * np.asarray(value)
    return total


def split(*values: Any) -> tuple[Any, Any]:
    """Two results."""
    made = mix(*values)
    return made + 1.0, made * 2.0


def fail(*values: Any) -> Any:
    """Raises."""
    raise ArithmeticError("seven is no divisor")


def die_once(flag: Any, *values: Any) -> Any:
    """The process that runs it first is killed; `flag` names a file by which the second one knows."""
    path = Path(str(flag))
    if not path.exists():
        path.write_text("died")
        os.kill(os.getpid(), signal.SIGKILL)
    return mix(*values)


def wait(flag: Any, *values: Any) -> Any:
    """Until a file is there."""
    while not Path(str(flag)).exists():
        time.sleep(0.01)
    return mix(*values)


def text(value: Any) -> str:
    """No array."""
    return f"{float(np.sum(value)):.6f}"
