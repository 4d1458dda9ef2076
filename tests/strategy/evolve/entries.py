"""Entry points for sandboxed workers, as loop.compose will provide one for scoring."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from strategy.evolve.worker.lockdown import locked
from strategy.evolve.worker.untrusted import load_untrusted


def score(init_payload: bytes) -> Callable[[bytes], bytes]:
    """Calls a candidate's `priority` function on what was loaded before the lockdown."""
    assert locked() is None
    data = Path(init_payload.decode()).read_text(encoding="utf-8")

    def answer(payload: bytes) -> bytes:
        candidate = load_untrusted(payload.decode())
        value = candidate.priority(data, None, None)  # type: ignore[arg-type]
        return json.dumps({"value": value}).encode()

    return answer


def misbehave(init_payload: bytes) -> Callable[[bytes], bytes]:
    """Does as it is told."""

    def answer(payload: bytes) -> bytes:
        if payload == b"hang":
            while True:
                pass
        if payload == b"die":
            os._exit(7)
        if payload == b"raise":
            raise ValueError("told to")
        if payload.startswith(b"busy"):
            began = time.monotonic()
            while time.monotonic() < began + float(payload[4:]):
                pass
            return json.dumps([began, time.monotonic()]).encode()
        return init_payload + payload

    return answer


def broken(init_payload: bytes) -> Callable[[bytes], bytes]:
    """Cannot start."""
    raise FileNotFoundError(f"no data at {init_payload.decode()}")
