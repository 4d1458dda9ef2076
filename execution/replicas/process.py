"""Notice the end of a process at once, and end it by a handle that never means another one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable


class ProcessWatch:
    """Calls back when a process has ended. (Linux: a pidfd in the event loop. Elsewhere it never calls, and the
    manager's readings notice.)"""

    def __init__(self, pid: int, ended: Callable[[], None]) -> None:
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._fd = -1
        if not hasattr(os, "pidfd_open"):
            return
        try:
            self._fd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._loop.call_soon(ended)
        except OSError:
            return  # not allowed here
        else:
            self._loop.add_reader(self._fd, self._over)

    def kill(self) -> None:
        """SIGKILL, if it is there."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    def close(self) -> None:
        """Watch no more; idempotent."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _over(self) -> None:
        self._loop.remove_reader(self._fd)
        self._ended()
