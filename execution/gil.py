"""The interpreter's lock, while a thread beside the serving one has much Python to run.

A step of eager operators gives the lock back some seventy times, and waits for it as often. By default whoever has it
keeps it for 5 ms: a step of 10 ms would take a third of a second.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_OFTEN_S = 1e-4
_lock = threading.Lock()
_inside = 0
_before_s = 0.0


@contextmanager
def yielding_often() -> Iterator[None]:
    """Within, the lock changes hands after 0.1 ms. For any number of threads at once."""
    global _inside, _before_s  # noqa: PLW0603 the interval is the process's
    with _lock:
        if not _inside:
            _before_s = sys.getswitchinterval()
            sys.setswitchinterval(min(_OFTEN_S, _before_s))
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                sys.setswitchinterval(_before_s)
