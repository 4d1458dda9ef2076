"""The protocol between a parent and its worker: frames over two pipes.

A frame is a 4-byte little-endian length and that many bytes. A request's first byte says what is asked; the
worker is the side that is not trusted, so its replies are read with `struct` and `json` alone, within a bound.

| request | body | reply |
|---|---|---|
| SETUP | pickled `Setup` (once, before the lockdown) | JSON: pid, layers, missing |
| LOAD | marshalled (name, source) | empty |
| SHOULD_REPLAN | marshalled (memo, pickled Observation) | JSON: answer, memo, cpu_s |
| PLAN | marshalled (memo, pickled Observation, budget_s) | JSON: plan, memo, cpu_s |
| SYNC | empty | JSON: memo |
| DISPATCH, ROUTE | marshalled (memo, request, changed, views) | `struct`: index, priority |
| PRIORITY | marshalled (memo, request, view) | `struct`: index, priority |
| CALL | the caller's bytes | the entry's bytes |

`memo` is None when the worker's is the current one, and so is an Observation that was sent last.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

SETUP, LOAD, SHOULD_REPLAN, PLAN, DISPATCH, ROUTE, PRIORITY, CALL, SYNC = range(9)
OK, FAILED = 0, 1
"""First byte of a reply; FAILED is followed by JSON: type, message, line."""

HEADER = struct.Struct("<I")
REQUEST_HEAD = struct.Struct("<IB")
"""Length of what follows it, and what is asked."""
DISPATCHED = struct.Struct("<IBqd")
"""A whole reply to DISPATCH, ROUTE or PRIORITY: length, OK, index, priority."""

MAX_REPLY_BYTES = 4 << 20
MAX_CALL_REPLY_BYTES = 64 << 20
READ_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Setup:
    """The first request: what to be, and how tightly to be locked."""

    memory_bytes: int
    cpu_s: int
    entry: str
    """`module:function` to serve CALL with, or empty: serve the decisions of a policy."""
    init_payload: bytes
