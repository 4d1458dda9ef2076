"""What is in force is watched: faults that guards notice, and whether the decode step's variants are still the faster.

watch = Watch(threads=1, every_s=1.0)
guard = GuardedDecode(original, watch.report)   # a listener of faults
watch.look(guard)                               # as often as one likes: it looks every `every_s`
for place, variant, what in watch.taken(): ...  # to be taken out for good
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable

from execution.engines.torch.core import DECODE
from execution.live.significance import paired_speed
from execution.live.swap import GuardedDecode
from execution.live.variants import Variant

Fault = tuple[str, Variant, str]
"""(name of the place, the variant, what it did)."""
_LEAST, _MOST = 12, 24
"""Shadow checks of a variant that its speed is judged by."""


class Watch:
    """`report` may be called from any thread; the rest belongs to one."""

    def __init__(self, *, threads: int, every_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`threads`: of arithmetic. `every_s`: between two looks at speed."""
        self._threads, self._every_s, self._clock = threads, every_s, clock
        self._faults: queue.SimpleQueue[Fault] = queue.SimpleQueue()
        self._slow: set[Variant] = set()
        self._next_s = clock() + every_s

    @property
    def quiet(self) -> bool:
        """Nothing was reported that is not taken yet."""
        return self._faults.empty()

    def report(self, place: str, variant: Variant, what: str) -> None:
        """A fault."""
        self._faults.put((place, variant, what))

    def taken(self) -> list[Fault]:
        """What was reported since."""
        found = []
        while not self._faults.empty():
            found.append(self._faults.get())
        return found

    def look(self, guard: GuardedDecode | None) -> None:
        """Shadow checks time both sides: a variant that fell behind is reported, once."""
        now_s = self._clock()
        if guard is None or now_s < self._next_s:
            return
        self._next_s = now_s + self._every_s
        checks = list(guard.checks)
        for variant in guard.table.variants():
            own = [c for c in checks if c.variant is variant][-_MOST:]
            if len(own) < _LEAST or variant in self._slow:
                continue
            slower = paired_speed(
                [c.variant_s for c in own], [c.original_s for c in own], threads=self._threads
            )
            if slower.ok:
                self._slow.add(variant)
                self.report(DECODE, variant, f"slow-down: the original is {slower.ratio:.2f}x as fast")
