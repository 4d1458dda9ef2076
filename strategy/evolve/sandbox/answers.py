"""Answers in JSON, turned into values of exactly the right types."""

from __future__ import annotations

from typing import Any

from loop.contracts import Plan, PolicyError, ReplicaSpec, Role
from strategy.evolve.sandbox.frames import clean

_MAX_REPLICAS, _MAX_DEVICES, _MAX_TEXT, _MAX_INT = 4096, 1024, 256, 2**31


def plan_of(answer: Any) -> Plan:
    """A plan of exactly the right types.

    Raises:
        PolicyError: names the replica and the field.
    """
    if not isinstance(answer, list) or len(answer) != 2 or not isinstance(answer[0], list):
        raise PolicyError("plan: the answer is no plan")
    replicas, reason = answer
    if len(replicas) > _MAX_REPLICAS:
        raise PolicyError(f"plan: {len(replicas)} replicas, at most {_MAX_REPLICAS}")
    return Plan(
        tuple(_spec(i, r) for i, r in enumerate(replicas)), clean(reason[:2000]) if _is(reason, str) else ""
    )


def _spec(index: int, fields: Any) -> ReplicaSpec:
    if not isinstance(fields, list) or len(fields) != 7:
        raise PolicyError(f"plan: replica {index} is no ReplicaSpec")
    model, devices, tp, pp, role, seqs, tokens = fields
    if not _is_text(model):
        raise PolicyError(f"plan: replica {index}: model is {model!r:.60}")
    if not isinstance(devices, list) or len(devices) > _MAX_DEVICES or not all(map(_is_text, devices)):
        raise PolicyError(f"plan: replica {index}: devices are {devices!r:.60}")
    named = {"tp": tp, "pp": pp, "max_num_seqs": seqs, "max_num_batched_tokens": tokens}
    for name, value in named.items():
        if not _is(value, int) or not 0 < value < _MAX_INT:
            raise PolicyError(f"plan: replica {index}: {name} is {value!r:.60}, not a positive int")
    try:
        return ReplicaSpec(model, tuple(devices), tp, pp, Role(role), seqs, tokens)
    except ValueError as error:
        raise PolicyError(f"plan: replica {index}: role is {role!r:.60}") from error


def _is_text(value: Any) -> bool:
    return _is(value, str) and len(value) <= _MAX_TEXT and value.isprintable()


def _is(value: Any, kind: type) -> bool:
    return value.__class__ is kind
