"""How long an engine is waited for: time in which we ourselves ran, and heard nothing of it.

A machine that slept, a process that was stopped, or one that got no processor finds on waking that every deadline has
passed. That is no sign that the engines hang: their answers lie unread. So what counts is not the clock but turns of
our own loop, and whatever comes of an engine meanwhile begins the count anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
TURNS = 20
"""The limit is waited for in so many parts; a part that took longer counts as one all the same."""


async def answered(question: Coroutine[Any, Any, T], limit_s: float, heard: Callable[[], int]) -> T:
    """What `question` returns. `heard` counts what has come of the engine by other ways, such as tokens.

    Raises:
        TimeoutError: nothing at all was heard for `limit_s` seconds of waiting.
    """
    asked = asyncio.ensure_future(question)
    last, quiet = heard(), 0
    try:
        while quiet < TURNS:
            done, _ = await asyncio.wait({asked}, timeout=limit_s / TURNS)
            if done:
                return asked.result()
            now = heard()
            quiet = quiet + 1 if now == last else 0
            last = now
        raise TimeoutError
    finally:
        asked.cancel()
