"""Units that are threads of this process, and the memory that they share."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from typing import Any

from physical.runtime.kernels import resolve
from physical.runtime.port import Ended, Failed, Order, Report


class HostMemory:
    """Implements Memory: values of this process, by reference."""

    def __init__(self) -> None:
        self._values: dict[int, Any] = {}

    def put(self, version: int, value: Any) -> None:
        """Store."""
        self._values[version] = value

    def get(self, version: int) -> Any:
        """The value itself."""
        return self._values[version]

    def __contains__(self, version: int) -> bool:
        return version in self._values

    def drop(self, version: int) -> None:
        """Forget."""
        self._values.pop(version, None)


class ThreadUnit:
    """Implements RunningUnit: one thread, where wished on one core of its own."""

    def __init__(self, unit: int, memory: HostMemory, report: Report, core: int | None = None) -> None:
        self._unit, self._memory, self._report, self._core = unit, memory, report, core
        self._orders: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"unit-{unit}", daemon=True)
        self._thread.start()

    def compute(self, order: Order) -> None:
        """Hand it to the thread."""
        self._orders.put(order)

    def close(self) -> None:
        """After what it does now."""
        self._orders.put(None)
        self._thread.join(timeout=5.0)

    def _work(self) -> None:
        if self._core is not None:
            with contextlib.suppress(OSError, AttributeError):
                os.sched_setaffinity(0, {self._core})
        while (order := self._orders.get()) is not None:
            began_s = time.perf_counter()
            try:
                carry_out(order, self._memory)
            except Exception as error:  # noqa: BLE001  # whatever a kernel raises is told by name
                self._report(Failed(self._unit, order.task, f"{type(error).__name__}: {error}"))
                continue
            self._report(Ended(self._unit, order.task, began_s, time.perf_counter()))


def carry_out(order: Order, memory: Any) -> None:
    """Call the order's function on values of a memory, and store what it returns. Raises what it raises."""
    result = resolve(order.function)(*(memory.get(version) for version in order.inputs))
    if len(order.outputs) == 1:
        memory.put(order.outputs[0], result)
        return
    found = () if result is None else tuple(result)
    if len(found) != len(order.outputs):
        raise ValueError(f"{order.function} returned {len(found)} values for {len(order.outputs)} data")
    for version, value in zip(order.outputs, found, strict=True):
        memory.put(version, value)
