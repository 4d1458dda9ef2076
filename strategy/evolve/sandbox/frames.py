"""What a worker says, read without trust: bounded in size, decoded by `struct` and `json` only."""

from __future__ import annotations

import json
from typing import Any

from loop.contracts import PolicyCrashed, PolicyError
from strategy.evolve.worker import wire

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class PolicyRaisedError(PolicyError):
    """The policy's code raised; `line` is the line of its source (0: unknown), `kind` the exception's type."""

    def __init__(self, message: str, kind: str, line: int) -> None:
        super().__init__(message)
        self.kind = kind
        self.line = line

    def __reduce__(self) -> tuple[type[PolicyRaisedError], tuple[str, str, int]]:
        return type(self), (str(self), self.kind, self.line)


def missing_of(data: bytes | bytearray, limit: int) -> int:
    """How many bytes of a frame have not come yet; negative when there is more than one frame.

    Raises:
        PolicyCrashed: the frame is longer than allowed, which only a broken worker sends.
    """
    if len(data) < wire.HEADER.size:
        return wire.HEADER.size - len(data)
    length = wire.HEADER.unpack_from(data)[0]
    if not 1 <= length <= limit:
        raise PolicyCrashed(f"the worker broke the protocol: an answer of {length} bytes, at most {limit}")
    return int(length) + wire.HEADER.size - len(data)


def payload_of(frame: bytes) -> bytes:
    """What a whole frame says, if it went well.

    Raises:
        PolicyRaisedError: the worker reports an exception.
    """
    payload = frame[wire.REQUEST_HEAD.size :]
    status = frame[wire.HEADER.size]
    if status == wire.OK:
        return payload
    if status != wire.FAILED:
        raise PolicyCrashed(f"the worker broke the protocol: status {status}")
    report = parse(payload)
    if not isinstance(report, dict):
        raise PolicyCrashed("the worker broke the protocol: a failure without a report")
    kind, line = clean(str(report.get("type"))[:80]), report.get("line")
    line = line if line.__class__ is int and 0 <= line < 1 << 31 else 0
    message = clean(str(report.get("message"))[:500])
    where = f" (line {line})" if line else ""
    raise PolicyRaisedError(f"{kind}: {message}{where}", kind, line)


def parse(payload: bytes) -> Any:
    """JSON from a worker.

    Raises:
        PolicyError: it is none.
    """
    try:
        return json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise PolicyError(f"the answer cannot be read: {clean(str(error)[:200])}") from error


def clean(text: str) -> str:
    """Foreign text that a terminal, a log and a database can take: no control characters, no surrogates."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else _REPLACEMENT for c in text)
