"""The control channel: one utility of vLLM's engine core, `autopoiesis`, that takes and gives plain values.

`register` is the entry point `vllm.general_plugins`; vLLM calls it in every process it starts. Messages:

| message | answer |
|---|---|
| `{"do": "status"}` | the scheduler's report |
| `{"do": "policy", "name": ..., "source": ...}` | the report, once the policy orders the queue; `source` "" : none |
| `{"do": "limits", "max_num_seqs": ..., "max_num_batched_tokens": ...}` | the report |

What cannot be done is answered by `{"error": kind, "message": why}`, and has changed nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from execution.engines.vllm.ordering import policy_source
from execution.engines.vllm.release import SUPPORTED, installed, supported
from execution.engines.vllm.settings import MAX_POLICY_BYTES
from loop.contracts import PolicyFault, PolicySource

UTILITY = "autopoiesis"
REFUSED, INVALID, ABSENT = "refused", "invalid", "absent"
"""Kinds of errors: the policy cannot serve; the message is wrong; the scheduler is not ours."""

Answer = dict[str, Any]


def register() -> None:
    """Give EngineCore the utility; any number of times. Another release of vLLM is left alone."""
    version = installed()
    if not supported(version):
        logging.getLogger(__name__).warning(
            "autopoiesis: vLLM %s is not %s.*: no control channel", version or "(unknown)", SUPPORTED
        )
        return
    from execution.engines.vllm.private import engine_core_class  # noqa: PLC0415  vLLM calls this while it loads

    def autopoiesis(self: Any, message: dict[str, Any]) -> Any:
        return obey(self.scheduler, message)

    setattr(engine_core_class(), UTILITY, autopoiesis)


def obey(scheduler: Any, message: Mapping[str, Any]) -> Answer | Future[Answer]:
    """Carry out one message, on the engine's own thread; a policy is loaded beside it."""
    if not hasattr(scheduler, "steer"):
        return error(
            ABSENT,
            f"vLLM runs {type(scheduler).__name__}: start it with "
            "--scheduler-cls execution.engines.vllm.scheduler.PolicyScheduler",
        )
    try:
        what = message.get("do")
        if what == "status":
            return report_of(scheduler)
        if what == "limits":
            scheduler.limit(_count(message, "max_num_seqs"), _count(message, "max_num_batched_tokens"))
            return report_of(scheduler)
        if what == "policy":
            return _swap(scheduler, _policy(message))
        raise ValueError(f"do: status, limits or policy, not {what!r:.60}")
    except ValueError as problem:
        return error(INVALID, str(problem))


def error(kind: str, message: str) -> Answer:
    """An answer that tells why not."""
    return {"error": kind, "message": message}


def report_of(scheduler: Any) -> Answer:
    """What the scheduler says of itself."""
    report: Answer = scheduler.report()
    return report


def _swap(scheduler: Any, source: PolicySource | None) -> Future[Answer]:
    answer: Future[Answer] = Future()
    answer.set_running_or_notify_cancel()

    def done(swapped: Future[PolicySource | None]) -> None:
        try:
            swapped.result()
        except PolicyFault as fault:
            answer.set_result(error(REFUSED, str(fault)))
        except BaseException as problem:  # noqa: BLE001  the caller waits for an answer
            answer.set_result(error(REFUSED, f"{type(problem).__name__}: {problem}"))
        else:
            answer.set_result(report_of(scheduler))

    scheduler.steer(source).add_done_callback(done)
    return answer


def _policy(message: Mapping[str, Any]) -> PolicySource | None:
    name, source = message.get("name", ""), message.get("source", "")
    if not isinstance(name, str) or not isinstance(source, str):
        raise ValueError("name and source of a policy are texts")  # noqa: TRY004  answered as INVALID
    if len(source.encode("utf-8", "replace")) > MAX_POLICY_BYTES:
        raise ValueError(f"source: a policy may have {MAX_POLICY_BYTES} bytes")
    return policy_source(name[:200], source) if source else None


def _count(message: Mapping[str, Any], name: str) -> int | None:
    value = message.get(name)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise ValueError(f"{name}: a whole number, not {value!r:.60}")
