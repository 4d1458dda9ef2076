"""A locked process that runs a trusted entry point on foreign material, e.g. the twin and a candidate."""

from __future__ import annotations

from loop.contracts import PolicyCrashed, PolicyTimeout
from strategy.evolve.sandbox.limits import MIB, SandboxLimits
from strategy.evolve.sandbox.process import WorkerProcess
from strategy.evolve.worker import wire

SCORING_LIMITS = SandboxLimits(memory_bytes=4096 * MIB)
"""Room for a simulator, its workload and numpy's address space."""


class SandboxedWorker:
    """Serves `call` by an entry point `module:function` in a locked process.

    The function is imported and called with `init_payload` before the process locks itself (it may read files
    and import there, and nowhere else), and returns what then answers each call: bytes to bytes. Candidates
    come by call; the entry loads them with `strategy.evolve.worker.untrusted.load_untrusted`.

    The bytes that come back are foreign: parse them as JSON and nothing else.
    """

    def __init__(self, entry: str, init_payload: bytes = b"", limits: SandboxLimits | None = None) -> None:
        self.entry = entry
        self.kills = 0
        self._init_payload = init_payload
        self._limits = limits or SCORING_LIMITS
        self._worker: WorkerProcess | None = self._start()

    @property
    def layers(self) -> tuple[str, ...]:
        """What holds the process; waits until it is locked."""
        return self._ready().layers

    def call(self, payload: bytes, deadline_s: float) -> bytes:
        """The entry's answer.

        Raises:
            PolicyTimeout, PolicyCrashed: the process is killed, and a new one starts in the background.
            PolicyError: the entry raised.
        """
        worker = self._ready()
        try:
            return worker.ask(wire.CALL, payload, deadline_s, wire.MAX_CALL_REPLY_BYTES)
        except (PolicyTimeout, PolicyCrashed):
            self._discard()
            self.kills += 1
            self._worker = self._start()
            raise
        except (KeyboardInterrupt, SystemExit):
            self._discard()
            raise

    def close(self) -> None:
        """End the process."""
        self._discard()

    def __enter__(self) -> SandboxedWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ready(self) -> WorkerProcess:
        if self._worker is None:
            self._worker = self._start()
        try:
            self._worker.wait_ready()
        except BaseException:
            self._discard()
            raise
        return self._worker

    def _start(self) -> WorkerProcess:
        return WorkerProcess(self._limits, self.entry, self._init_payload)

    def _discard(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker = None
