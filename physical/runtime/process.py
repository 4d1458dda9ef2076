"""A unit that is a process of its own, with a memory of its own: values get there by being copied.

The process has two threads: one computes, one receives and sends values meanwhile, so that inputs can come before
they are needed. It is spawned, ends with its parent, and whatever kills it is one `Lost` event.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import queue
import signal
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

from physical.runtime.host import HostMemory, carry_out
from physical.runtime.port import Ended, Event, Failed, Lost, MemoryLostError, Order, Report

START_S = 60.0
"""A process that does not say that it runs by then never will."""


class ProcessUnit:
    """Implements RunningUnit and Memory."""

    def __init__(
        self, unit: int, report: Report, core: int | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        """Spawn, and wait until it runs. Raises MemoryLostError."""
        self._unit, self._report = unit, report
        context = multiprocessing.get_context("spawn")
        orders, far_orders = context.Pipe()
        values, far_values = context.Pipe()
        self._orders: Connection = orders
        self._values: Connection = values
        self._lock = threading.Lock()  # of the values' pipe: one transfer at a time
        self._dropped: queue.SimpleQueue[int] = queue.SimpleQueue()  # to be told with the next transfer
        self._closing = False
        self._process = context.Process(
            target=_serve, args=(unit, far_orders, far_values, core), name=f"unit-{unit}", daemon=True
        )
        with _environment(environment or {}):
            self._process.start()
        far_orders.close()
        far_values.close()
        if not orders.poll(START_S):
            self.close()
            raise MemoryLostError(f"unit {unit}: its process did not start within {START_S:g} s")
        try:
            orders.recv()
        except EOFError:
            raise MemoryLostError(f"unit {unit}: its process ended at its start") from None
        self._listener = threading.Thread(target=self._listen, name=f"unit-{unit}-events", daemon=True)
        self._listener.start()

    @property
    def pid(self) -> int | None:
        """Of the process."""
        return self._process.pid

    def compute(self, order: Order) -> None:
        """Send the order; a process that is gone is reported by the listener."""
        with contextlib.suppress(OSError, ValueError):
            self._orders.send(order)

    def put(self, version: int, value: Any) -> None:
        """Copy a value there, and wait until it is. Raises MemoryLostError."""
        buffers: list[pickle.PickleBuffer] = []
        body = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        with self._lock, self._lost_if_broken():
            self._tell_dropped()
            self._values.send(("put", version, len(buffers)))
            self._values.send_bytes(body)
            for buffer in buffers:
                self._values.send_bytes(buffer.raw())
            self._values.recv()

    def get(self, version: int) -> Any:
        """Copy a value here. Raises MemoryLostError, KeyError."""
        with self._lock, self._lost_if_broken():
            self._tell_dropped()
            self._values.send(("get", version, 0))
            count = self._values.recv()
            if count is None:
                raise KeyError(version)
            return _received(self._values, count)

    def drop(self, version: int) -> None:
        """It may forget; waits for nothing."""
        self._dropped.put(version)

    def close(self) -> None:
        """Kill it, whatever it does."""
        self._closing = True
        self._process.kill()
        self._process.join(timeout=5.0)
        self._orders.close()
        self._values.close()

    def _tell_dropped(self) -> None:
        while not self._dropped.empty():
            self._values.send(("drop", self._dropped.get(), 0))

    def _lost_if_broken(self) -> contextlib.AbstractContextManager[None]:
        return _lost_if_broken(self._unit)

    def _listen(self) -> None:
        try:
            while True:
                event: Event = self._orders.recv()
                self._report(event)
        except (EOFError, OSError, ValueError, TypeError):  # closed here, or gone there
            if self._closing:
                return
            self._process.join(timeout=1.0)
            code = self._process.exitcode
            why = f"killed by signal {-code}" if code is not None and code < 0 else f"ended with {code}"
            self._report(Lost(self._unit, f"its process was {why}"))


@contextlib.contextmanager
def _lost_if_broken(unit: int) -> Any:
    try:
        yield
    except (EOFError, OSError, ValueError) as error:
        raise MemoryLostError(f"unit {unit}: its process is gone") from error


@contextlib.contextmanager
def _environment(changes: Mapping[str, str]) -> Any:
    """Variables that a spawned process begins with; libraries read them when they are loaded."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _received(connection: Connection, count: int) -> Any:
    """A pickled value with its buffers behind it."""
    body = connection.recv_bytes()
    return pickle.loads(body, buffers=[connection.recv_bytes() for _ in range(count)])  # noqa: S301  # our own child


# ---- the process ---------------------------------------------------------------------------------------------------


def _serve(unit: int, orders: Connection, values: Connection, core: int | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    if core is not None:
        with contextlib.suppress(OSError, AttributeError):
            os.sched_setaffinity(0, {core})
    memory = HostMemory()
    threading.Thread(target=_exchange, args=(memory, values), daemon=True).start()
    orders.send("ready")
    while True:
        try:
            order = orders.recv()
        except (EOFError, OSError):
            return
        began_s = time.perf_counter()
        answer: Event
        try:
            carry_out(order, memory)
            answer = Ended(unit, order.task, began_s, time.perf_counter())
        except Exception as error:  # noqa: BLE001  # whatever a kernel raises is told by name
            answer = Failed(unit, order.task, f"{type(error).__name__}: {error}")
        try:
            orders.send(answer)
        except OSError:
            return


def _exchange(memory: HostMemory, values: Connection) -> None:
    """Values come and go while tasks run."""
    try:
        while True:
            what, version, count = values.recv()
            if what == "put":
                memory.put(version, _received(values, count))
                values.send(True)
            elif what == "get":
                if version not in memory:
                    values.send(None)
                    continue
                buffers: list[pickle.PickleBuffer] = []
                body = pickle.dumps(memory.get(version), protocol=5, buffer_callback=buffers.append)
                values.send(len(buffers))
                values.send_bytes(body)
                for buffer in buffers:
                    values.send_bytes(buffer.raw())
            else:
                memory.drop(version)
    except (EOFError, OSError):
        os._exit(0)  # the parent is gone
