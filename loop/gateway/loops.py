"""An event loop for a server: the fastest at hand, and without long pauses."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """For `asyncio.Runner(loop_factory=...)`: uvloop where it is installed, else asyncio's own."""
    try:
        import uvloop  # noqa: PLC0415  # not there on every platform
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def settle_heap() -> None:
    """Take all that exists now out of garbage collection, for good; called once a process has all it serves with.

    Else each full collection looks at every loaded module again, and all streams of the process wait for it: tens of
    milliseconds at the 99th percentile. What is made later is collected as ever.
    """
    gc.collect()
    gc.freeze()
