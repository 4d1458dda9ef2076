"""The question that is asked for every request, laid out by `struct`: both ends of the hot path.

A frame holds the request and, of the replicas, only the fields that can change of only the views that did. It
takes for granted that the worker knows the model's replicas (a *slot*) from a question in full; whatever does
not fit (a new replica, a number beyond 64 bits) is asked in full again.

| part | layout |
|---|---|
| head | length, QUICK_*, number of the question, slot, cached tokens given, views given |
| request | every field but `model` and `cached_tokens` |
| cached tokens | one integer for each replica, or none |
| views | position and the fields after `pp`, for each view that changed |
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from itertools import compress
from operator import is_not
from typing import Any, get_type_hints

from loop.contracts import ReplicaView, RequestView

HEAD = struct.Struct("<IBIHHH")
_LETTERS = {int: "q", float: "d"}
_FIXED = ReplicaView._fields.index("pp") + 1
"""Fields that never change in the life of a replica stand first."""


def _letters(view: type, fields: Sequence[str]) -> str:
    kinds = get_type_hints(view)
    return "".join(_LETTERS[kinds[field]] for field in fields)


_ASKED = _letters(RequestView, (RequestView._fields[0], *RequestView._fields[2:-1]))
_CHANGING = _letters(ReplicaView, ReplicaView._fields[_FIXED:])
_REQUEST_AT = 6
_CACHED_AT = _REQUEST_AT + len(_ASKED)
_WIDTH = 1 + len(_CHANGING)


@lru_cache(maxsize=4096)
def _layout(cached: int, changed: int) -> struct.Struct:
    return struct.Struct(HEAD.format + _ASKED + "q" * cached + ("H" + _CHANGING) * changed)


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
    changes: list[Any] = []
    changed = 0
    if replicas != known:
        if len(replicas) != len(known):
            return None
        for i in compress(range(len(known)), map(is_not, replicas, known)):
            view = replicas[i]
            if view[:_FIXED] != known[i][:_FIXED]:
                return None
            changes += (i, *view[_FIXED:])
            changed += 1
    cached = request[-1]
    layout = _layout(len(cached), changed)
    try:
        frame = layout.pack(
            *(layout.size - 4, kind, number, slot.number, len(cached), changed, request[0]),
            *request[2:-1],
            *cached,
            *changes,
        )
    except struct.error:
        return None
    if changed:
        slot.views = list(replicas)
    return frame


def answer_to(
    frame: bytes, slots: dict[int, tuple[str, tuple[ReplicaView, ...]]]
) -> tuple[int, RequestView, tuple[ReplicaView, ...]]:
    """(number of the question, request, replicas), and the slot brought up to date."""
    _, _, number, slot, cached, changed = HEAD.unpack_from(frame)
    fields = _layout(cached, changed).unpack(frame)
    model, replicas = slots[slot]
    at = _CACHED_AT + cached
    request = _new(RequestView, (fields[_REQUEST_AT], model, *fields[7:_CACHED_AT], fields[_CACHED_AT:at]))
    if changed:
        views = list(replicas)
        while at < len(fields):
            i = fields[at]
            views[i] = _new(ReplicaView, views[i][:_FIXED] + fields[at + 1 : at + _WIDTH])
            at += _WIDTH
        replicas = tuple(views)
        slots[slot] = model, replicas
    return number, request, replicas


_new: Any = tuple.__new__  # what `_make` does, less a call
