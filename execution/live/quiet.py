"""Python beside a thread that serves: short turns at the interpreter's lock, and no search for garbage meanwhile.

with quietly():
    import_a_compiler()
with undisturbed():      # in the step thread, between two steps
    exchange_pointers()

The collector looks at all objects of the process when many were made, and holds the lock for as long: with torch and a
compiler's modules loaded that is a third of a second, in which no token comes. What is imported or loaded here stays, so
nobody needs to look for it.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from execution.gil import yielding_often

_LONG_S, _HALF_A_MICROSECOND_S = 5e-3, 5e-7
_lock = threading.Lock()
_inside = 0
_collecting = True


@contextmanager
def quietly() -> Iterator[None]:
    """Within, the lock changes hands often and nothing is collected; what is there at the end is taken to stay. For any
    number of threads at once; not for long: cycles of garbage made meanwhile are kept."""
    global _inside, _collecting  # noqa: PLW0603 the collector is the process's
    with _lock:
        if not _inside:
            _collecting = gc.isenabled()
            gc.disable()
        _inside += 1
    try:
        with yielding_often():
            yield
    finally:
        with _lock:
            _inside -= 1
            gc.freeze()
            if not _inside and _collecting:
                gc.enable()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Within, which is to be less than a millisecond, the lock is not handed over though others want short turns."""
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(max(_LONG_S, before_s))
    try:
        yield
    finally:
        sys.setswitchinterval(before_s + _HALF_A_MICROSECOND_S)  # Python cuts off what is less than one
