"""A trusted entry point on foreign material, e.g. the twin and a candidate, in locked processes."""

from __future__ import annotations

from strategy.evolve.sandbox.limits import SandboxLimits
from strategy.evolve.sandbox.pool import PoolJob, WorkerPool


class SandboxedWorker:
    """Serves `call` by an entry point `module:function`, each call in a locked process of its own.

    The function is imported and called with `init_payload` once, in a process that is not locked and never
    runs foreign code (it may read files and import there, and nowhere else), and returns what then answers
    each call: bytes to bytes. Candidates come by call; the entry loads them with
    `strategy.evolve.worker.untrusted.load_untrusted`.

    The bytes that come back are foreign: parse them as JSON and nothing else.
    """

    def __init__(self, entry: str, init_payload: bytes = b"", limits: SandboxLimits | None = None) -> None:
        self.entry = entry
        self._pool = WorkerPool(1, entry, init_payload, limits)

    @property
    def kills(self) -> int:
        """Processes that missed their deadline or died."""
        return self._pool.kills

    @property
    def layers(self) -> tuple[str, ...]:
        """What holds the processes; waits until the entry point is built."""
        self._pool.wait_ready()
        return self._pool.layers

    def call(self, payload: bytes, deadline_s: float) -> bytes:
        """The entry's answer.

        Raises:
            PolicyTimeout, PolicyCrashed: the process was killed, or died.
            PolicyError: the entry raised.
        """
        self._pool.wait_ready()
        ((_, answer),) = self._pool.run([PoolJob(payload, deadline_s)])
        if isinstance(answer, bytes):
            return answer
        raise answer

    def close(self) -> None:
        """End all processes."""
        self._pool.close()

    def __enter__(self) -> SandboxedWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
