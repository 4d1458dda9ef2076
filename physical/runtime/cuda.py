"""A unit that is a GPU: one stream computes, others copy meanwhile. The only place of this layer that imports torch.

Values are torch tensors there (numpy arrays become tensors on their way, and arrays again on their way back); a
kernel's function is called on them with its stream current, and the task ends when the stream is through with it.
"""

from __future__ import annotations

import queue
import threading
import time
from typing import Any

import torch

from physical.runtime.host import HostMemory, carry_out
from physical.runtime.port import Ended, Failed, Order, Report


class CudaUnit:
    """Implements RunningUnit and Memory for the device of a node that is named `cuda:0`, `cuda:1`, ..."""

    def __init__(self, unit: int, node: str, report: Report) -> None:
        """Raises RuntimeError where torch sees no such device."""
        self._unit, self._report = unit, report
        self._device = torch.device(node)
        self._values = HostMemory()
        self._compute = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._orders: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"unit-{unit}", daemon=True)
        self._thread.start()

    def compute(self, order: Order) -> None:
        """Hand it to the thread that drives the stream."""
        self._orders.put(order)

    def put(self, version: int, value: Any) -> None:
        """Copy to the device through pinned memory, on a stream of its own; returns when it is there."""
        if not isinstance(value, torch.Tensor):
            array = torch.as_tensor(value)
            stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            with torch.cuda.stream(stream):
                value = array.pin_memory().to(self._device, non_blocking=True)
            stream.synchronize()
        self._values.put(version, value)

    def get(self, version: int) -> Any:
        """Copy to this process as a numpy array; returns when it is here."""
        value = self._values.get(version)
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            copy = torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(
                value, non_blocking=True
            )
        stream.synchronize()
        return copy.numpy()

    def drop(self, version: int) -> None:
        """Free it."""
        self._values.drop(version)

    def close(self) -> None:
        """After what it does now."""
        self._orders.put(None)
        self._thread.join(timeout=5.0)

    def _work(self) -> None:
        while (order := self._orders.get()) is not None:
            began_s = time.perf_counter()
            try:
                with torch.inference_mode(), torch.cuda.stream(self._compute):
                    carry_out(order, self._values)
                self._compute.synchronize()
            except Exception as error:  # noqa: BLE001  # whatever a kernel raises is told by name
                self._report(Failed(self._unit, order.task, f"{type(error).__name__}: {error}"))
                continue
            self._report(Ended(self._unit, order.task, began_s, time.perf_counter()))
