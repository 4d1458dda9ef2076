"""The protocol between a parent and its worker processes.

Two kinds of process speak it. The *template* is trusted, never runs foreign code and forks the others; it
talks over one socket. A *worker* is forked and locked, runs foreign code, and talks over two pipes: since it is
not trusted, its replies are read with `struct` and `json` alone, within a bound.

From the parent to the template: one `ORDER` each, FORK with two descriptors (what to read, what to write).
From the template: one frame of JSON once it is ready, then one `REPORT` for each thing that happens.

To a worker and back go frames: a 4-byte little-endian length and that many bytes. A request's first byte says
what is asked.

| request | body | reply |
|---|---|---|
| LOAD | marshalled (name, source) | empty |
| SHOULD_REPLAN | marshalled (memo, pickled Observation) | JSON: answer, memo, cpu_s |
| PLAN | marshalled (memo, pickled Observation, budget_s) | JSON: plan, memo, cpu_s |
| SYNC | empty | JSON: memo |
| DISPATCH, ROUTE | marshalled (number, memo, request, slot, views) | `struct`: number, index, priority |
| PRIORITY | marshalled (number, memo, request, view) | `struct`: number, index, priority |
| PRIORITIES | marshalled (memo, view, requests) | JSON: a number for each (NaN: it raised), memo |
| QUICK_DISPATCH, QUICK_ROUTE | see `quick` | `struct`: number, index, priority |

A request with the bit LINGER asks the worker to stay awake for LINGER_S after its answer: the next one is near.

`memo` is None when the worker's is the current one, and so is an Observation that was sent last. Without being
asked, a worker that serves decisions says one thing: the JSON report of its lockdown, before anything else. A
worker that serves a job reads the job to its end, and writes one frame.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

LOAD, SHOULD_REPLAN, PLAN, SYNC, DISPATCH, ROUTE, PRIORITY, QUICK_DISPATCH, QUICK_ROUTE, PRIORITIES = range(
    10
)
LINGER, LINGER_S = 0x80, 200e-6
OK, FAILED = 0, 1
"""First byte of a reply; FAILED is followed by JSON: type, message, line."""

MARSHAL_VERSION = 2
"""Plain values need no back references, and are written faster without."""
HEADER = struct.Struct("<I")
REQUEST_HEAD = struct.Struct("<IB")
"""Length of what follows it, and what is asked."""
DISPATCHED = struct.Struct("<IBIqd")
"""A whole reply to a question of routing: length, OK, number of the question, index, priority."""

FORK, END = range(2)
ORDER = struct.Struct("<BIQQ")
"""To the template: FORK or END, number of the worker, memory_bytes, cpu_s."""
STARTED, GONE, NOT_STARTED = range(3)
REPORT = struct.Struct("<BIq")
"""From the template: what happened, number of the worker, and its pid, its wait status, or an errno."""

MAX_REPLY_BYTES = 4 << 20
MAX_CALL_REPLY_BYTES = 64 << 20
READ_BYTES = 1 << 16
QUESTION_BYTES, ANSWER_BYTES = 2048, 64
"""Asked for in the first read of the hot path: a buffer of 64 KiB costs a microsecond and a half."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a template is to be."""

    entry: str
    """`module:function`: each worker serves one job with what it returns. Empty: each serves the decisions of
    a policy."""
    init_payload: bytes
    memory_bytes: int
    """For the worker that the template forks once to find out what the kernel grants."""
    cpu_s: int
    cpus: tuple[int, ...]
    """Where workers may run; empty: anywhere. The thread that starts a template may itself be bound to one."""
