"""Waiting for others without being deaf meanwhile.

for event in attended(service.best_sync(subject, samples)):
    if event is None: ...      # nothing new yet: look around
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from typing import Any, TypeVar

import torch

T = TypeVar("T")
POLL_S = 0.05
"""Seconds after which who waits may look around."""


def attended(events: Iterator[T], poll_s: float = POLL_S) -> Generator[T | None, None, None]:
    """The same events, each asked for in a thread of its own when the one before is done with; None whenever `poll_s`
    have passed without one. Given up on, the iterator is closed once it comes to its next event."""
    end: Any = object()
    asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
    answers: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()

    def work() -> None:
        torch.set_num_threads(1)  # of this thread: the others serve
        while asked.get():
            try:
                answers.put((next(events, end), None))
            except Exception as error:  # noqa: BLE001 raised again where it is waited for
                answers.put((end, error))
        close = getattr(events, "close", None)
        if close is not None:
            close()

    threading.Thread(target=work, name="execution-waiting", daemon=True).start()
    try:
        while True:
            asked.put(True)
            while (answer := _next(answers, poll_s)) is None:
                yield None
            event, error = answer
            if error is not None:
                raise error
            if event is end:
                return
            yield event
    finally:
        asked.put(False)


def _next(answers: queue.SimpleQueue[T], poll_s: float) -> T | None:
    try:
        return answers.get(timeout=poll_s)
    except queue.Empty:
        return None
