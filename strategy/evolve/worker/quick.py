"""The question that is asked for every request: both ends of the hot path.

It holds the request and, of the replicas, only the fields that can change of only the views that did. It takes
for granted that the worker knows the model's replicas (a *slot*) from a question in full; where it does not (a
replica came, went, or became another), the question is asked in full again.

A frame is a REQUEST_HEAD and, marshalled, (number of the question, request's id, slot, the request's fields after
its model, changes). Changes are None or a list of (position, the view's fields after `pp`).
"""

from __future__ import annotations

import marshal
from collections.abc import Sequence
from typing import Any

from loop.contracts import ReplicaView, RequestView
from strategy.evolve.worker.wire import MARSHAL_VERSION, REQUEST_HEAD

_FIXED = ReplicaView._fields.index("pp") + 1
"""Fields that never change in the life of a replica stand first."""
_dumps, _loads, _head, _HEAD_BYTES = marshal.dumps, marshal.loads, REQUEST_HEAD.pack, REQUEST_HEAD.size


class Slot:
    """The replicas of one model as the other side has them."""

    __slots__ = ("model", "number", "views")

    def __init__(self, number: int, model: str, views: Sequence[ReplicaView]) -> None:
        self.number = number
        self.model = model
        self.views = list(views)


def question(
    kind: int, number: int, slot: Slot, request: RequestView, replicas: Sequence[ReplicaView]
) -> bytes | None:
    """The whole frame, and the slot brought up to date; None: it must be asked in full."""
    known = slot.views
    changes = None
    if replicas != known:
        if len(replicas) != len(known):
            return None
        changes = []
        for i, view in enumerate(replicas):
            old = known[i]
            if view is not old:
                if view[:_FIXED] != old[:_FIXED]:
                    return None
                changes.append((i, view[_FIXED:]))
        slot.views = list(replicas)
    body = _dumps((number, request[0], slot.number, request[2:], changes), MARSHAL_VERSION)
    return _head(len(body) + 1, kind) + body


def answer_to(
    frame: bytes, slots: dict[int, tuple[str, tuple[ReplicaView, ...]]]
) -> tuple[int, RequestView, tuple[ReplicaView, ...]]:
    """(number of the question, request, replicas), and the slot brought up to date."""
    number, request_id, slot, asked, changes = _loads(frame[_HEAD_BYTES:])
    model, replicas = slots[slot]
    if changes:
        views = list(replicas)
        for i, fields in changes:
            views[i] = _new(ReplicaView, views[i][:_FIXED] + fields)
        replicas = tuple(views)
        slots[slot] = model, replicas
    return number, _new(RequestView, (request_id, model, *asked)), replicas


_new: Any = tuple.__new__  # what `_make` does, less a call
