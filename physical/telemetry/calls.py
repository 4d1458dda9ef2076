"""Calls into the driver, by one thread at a time, so that others see when one does not come back.

The thread that polls owns the calls. When one hangs, `abandon` takes the ownership away; another thread goes on, and the
first one, should its call ever return, finds that out and ends (`Superseded`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NoReturn

from physical.telemetry.nvml import Nvml


class Superseded(Exception):
    """Another thread has taken over while this one hung in a call: it has to end."""


class WatchedCalls:
    """NVML's calls with an owner, and a note of what is being asked."""

    def __init__(self, library: Nvml) -> None:
        self.nvml = library
        self.progress = 0
        """Grows with every call that begins or ends: who watches sees by it that nothing moves."""
        self.doing: tuple[str, str] | None = None
        """(device id or '', call) that is being asked now; None between two calls."""
        self.owner: int | None = None
        self._lock = threading.Lock()
        self._returned: list[str] = []

    def own(self) -> list[str]:
        """From now on the calling thread asks. Returns the devices whose hanging calls came back ('': the library).

        Raises:
            Superseded: another thread does.
        """
        with self._lock:
            if self.owner is None:
                self.owner = threading.get_ident()
            if self.owner != threading.get_ident():
                raise Superseded
            returned, self._returned = self._returned, []
        return returned

    def release(self) -> None:
        """The calling thread asks no more; another may."""
        with self._lock:
            if self.owner == threading.get_ident():
                self.owner = None

    def abandon(self) -> tuple[str, str] | None:
        """Give up on the call that is being asked: (device, call); None when none is."""
        with self._lock:
            doing, self.doing = self.doing, None
            if doing is not None:
                self.owner = None
            return doing

    def watched(self, device: str, name: str, action: Callable[[], Any]) -> Any:
        """Do something that may hang.

        Raises:
            Superseded: it did, and another thread polls now.
        """
        owner = self.owner
        self.doing = (device, name)
        self.progress += 1
        answer = action()
        if self.owner != owner:
            self.end_superseded(device)
        self.progress += 1
        self.doing = None
        return answer

    def ask(self, device: str, call: str, *args: Any) -> Any:
        """One call: the binding's answer, or a `Refusal`."""
        return self.watched(device, call, lambda: self.nvml.ask(call, *args))

    def end_superseded(self, device: str) -> NoReturn:
        """The call came back, and another thread polls by now: that one shall look at the device again."""
        with self._lock:
            self._returned.append(device)
        raise Superseded
