"""vLLM's scheduler with the queue ordered by a policy: `--scheduler-cls execution.engines.vllm.scheduler.PolicyScheduler`.

Before each step the waiting requests are put in the order that the policy's `priority` gives them; all else is
vLLM's own: admission as far as seats, tokens and KV cache go, chunked prefill, preemption. Without a policy the
order is that of the priorities given with the requests, then of arrival. A request that the policy refuses (REJECT)
before it has given a token ends with the finish reason `abort` and the stop reason `rejected by policy ...`.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from typing import Any

from execution.engines.vllm.meter import StepMeter
from execution.engines.vllm.ordering import QueueOrder, policy_source, sandboxed
from execution.engines.vllm.private import (
    VERSION,
    AsyncScheduler,
    EngineCoreOutput,
    EngineCoreOutputs,
    FCFSRequestQueue,
    FinishReason,
    RequestStatus,
    Scheduler,
    current_platform,
)
from execution.engines.vllm.settings import plugin_settings, read_policy
from execution.twin.predictor import OutputPredictor
from loop.contracts import PolicyFault, PolicySource, ReplicaView, RequestView, Role

__all__ = ["AsyncPolicyScheduler", "PolicyScheduler", "SyncPolicyScheduler"]

PREFIX = "autopoiesis_"
"""Of the names in a request's `vllm_xargs` that the plug-in reads: priority, arrival_s (monotonic), tier, retries."""
REJECTED = "rejected by policy"
_MAX_STEPS = 16
"""Under way at a time."""
_UNIX_S = time.time() - time.monotonic()
"""From the monotonic clock, on which arrivals are told, to Unix time."""


class _Entry:
    """A request as long as vLLM has it. Implements ordering.Waiting."""

    __slots__ = ("arrival_s", "given", "key", "model", "number", "order_s", "predicted", "request",
                 "retries", "tier")  # fmt: skip

    def __init__(self, request: Any, number: int, model: str, predicted: float) -> None:
        parameters = request.sampling_params
        extra = parameters.extra_args or {} if parameters is not None else {}
        self.request = request
        self.key: str = request.request_id
        self.number = number
        self.model = model
        self.predicted = predicted
        self.given = _number(extra, "priority", float(request.priority))
        self.tier = int(_number(extra, "tier", 0.0))
        self.retries = int(_number(extra, "retries", 0.0))
        told_s = _number(extra, "arrival_s", -1.0)
        self.arrival_s: float = request.arrival_time
        """Unix time, for policies."""
        self.order_s: float = self.arrival_s
        """The same, for the order of the queue: what was told, even a 0 that only says "no idea"."""
        if told_s >= 0.0:
            self.order_s = told_s + _UNIX_S
            self.arrival_s = self.order_s if told_s else self.arrival_s

    @property
    def begun(self) -> bool:
        """It has given tokens, or held KV cache."""
        return bool(self.request.num_preemptions or self.request.num_output_tokens)

    @property
    def left_tokens(self) -> float:
        """Predicted output still to come; at least 1."""
        return max(self.predicted - float(self.request.num_output_tokens), 1.0)

    def view(self, now_s: float) -> RequestView:
        """As a policy sees it."""
        return RequestView(
            id=self.number,
            model=self.model,
            arrival_s=self.arrival_s,
            now_s=max(now_s, self.arrival_s),
            input_tokens=self.request.num_prompt_tokens,
            predicted_output_tokens=self.predicted,
            tier=self.tier,
            retries=self.retries,
        )


class SyncPolicyScheduler(Scheduler):  # type: ignore[misc] # Any, where vLLM is not installed
    """For platforms without async scheduling."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._settings = plugin_settings(self.vllm_config.additional_config, os.environ)
        self._predictor = OutputPredictor(self._settings.predicted_output_tokens)
        self._meter = StepMeter()
        self._entries: dict[str, _Entry] = {}
        self._added = 0
        self._newcomers = False
        self._began: dict[int, float] = {}
        """When the scheduling of each step began whose output has not come."""
        self._ended = 0.0
        self._refused: list[tuple[Any, str]] = []
        self._counts = {"finished": 0, "prompt_tokens": 0, "generated_tokens": 0}
        self._model = _served_name(self.vllm_config.model_config)
        self._order = QueueOrder(
            sandboxed(self._settings.sandbox, self._settings.ask_s),
            budget_s=self._settings.step_budget_s,
            max_faulty_steps=self._settings.max_faulty_steps,
        )
        if self._settings.policy:
            path = self._settings.policy
            try:
                self.steer(policy_source(path, read_policy(path))).result()
            except PolicyFault as fault:
                self._order.close()
                raise ValueError(f"{path}: the policy cannot serve: {fault}") from fault

    # -- what vLLM calls ---------------------------------------------------------------------------------

    def add_request(self, request: Any) -> None:
        """Remember when it came."""
        if request.request_id not in self.requests:
            self._enter(request)
        super().add_request(request)

    def schedule(self, throttle_prefills: bool = False) -> Any:  # noqa: FBT001, FBT002  vLLM's signature
        """Order the queue, then as vLLM does."""
        began_s = time.monotonic()
        seats = len(self.running) < self.max_num_active_reqs
        if self.waiting and (seats or self._newcomers):
            self._arrange(seats=seats)
        step = super().schedule(throttle_prefills)
        while len(self._began) >= _MAX_STEPS:  # a step without an output
            self._began.pop(next(iter(self._began)))
        self._began[id(step)] = began_s
        return step

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Count the step, learn from what finished, tell clients of what was refused."""
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        self._count(scheduler_output, outputs)
        for request, why in self._refused:
            refusal = EngineCoreOutput(
                request_id=request.request_id,
                new_token_ids=[],
                finish_reason=FinishReason.ABORT,
                stop_reason=why,
            )
            mine = outputs.setdefault(request.client_index, EngineCoreOutputs())
            mine.outputs.append(refusal)
        self._refused.clear()
        return outputs

    def finish_requests(self, request_ids: Any, finished_status: Any) -> Any:
        """Forget what was aborted."""
        finished = super().finish_requests(request_ids, finished_status)
        for request in finished:
            self._entries.pop(request.request_id, None)
        return finished

    def has_requests(self) -> bool:
        """Also while somebody has to be told."""
        return bool(self._refused) or super().has_requests()

    def shutdown(self) -> None:
        """And end the policy's process."""
        self._order.close()
        super().shutdown()

    # -- the control channel -----------------------------------------------------------------------------

    def steer(self, source: PolicySource | None) -> Future[PolicySource | None]:
        """Order by another policy; see QueueOrder.swap."""
        return self._order.swap(source, self._view())

    def limit(self, max_num_seqs: int | None, max_num_batched_tokens: int | None) -> None:
        """Other limits from the next step on. Raises ValueError, having changed nothing."""
        seats, tokens = self.max_num_running_reqs, self.scheduler_config.max_num_batched_tokens
        for name, value, most in (
            ("max_num_seqs", max_num_seqs, seats),
            ("max_num_batched_tokens", max_num_batched_tokens, tokens),
        ):
            if value is not None and not 1 <= value <= most:
                raise ValueError(f"{name}: from 1 to the {most} that vLLM was started with, not {value}")
        if max_num_seqs is not None:
            self.max_num_active_reqs = max_num_seqs
        if max_num_batched_tokens is not None:
            self.max_num_scheduled_tokens = max_num_batched_tokens

    def report(self) -> dict[str, Any]:
        """The state in plain values."""
        view = self._view()
        return {
            "vllm": VERSION,
            "scheduler": type(self).__name__,
            "running": view.running,
            "waiting": view.waiting,
            "waiting_tokens": view.waiting_tokens,
            "kv_tokens": view.kv_tokens,
            "kv_capacity_tokens": view.kv_capacity_tokens,
            "block_tokens": self.block_size,
            "max_num_seqs": view.max_num_seqs,
            "max_num_batched_tokens": view.max_num_batched_tokens,
            "max_num_seqs_ceiling": self.max_num_running_reqs,
            "max_num_batched_tokens_ceiling": self.scheduler_config.max_num_batched_tokens,
            "seeded_sampler": _samples_by_position(self.vllm_config.model_config),
            "steps": self._meter.steps,
            "step_s": self._meter.step_s,
            **self._counts,
            **self._order.report(),
        }

    # -- details -----------------------------------------------------------------------------------------

    def _enter(self, request: Any) -> _Entry:
        self._added += 1
        self._newcomers = True
        predicted = self._predictor.predict(self._model, request.num_prompt_tokens)
        entry = self._entries[request.request_id] = _Entry(request, self._added, self._model, predicted)
        return entry

    def _arrange(self, *, seats: bool) -> None:
        known = self._entries
        waiting: list[Any] = list(self.waiting)
        entries = [known.get(request.request_id) or self._enter(request) for request in waiting]
        self._newcomers = False
        entries.sort(key=lambda entry: (entry.order_s, entry.number))
        order, refused = self._order.arrange(entries, self._view(), seats=seats)
        self.waiting: Any = FCFSRequestQueue([entries[i].request for i in order])
        if not refused:
            return
        policy = self._order.policy
        why = f"{REJECTED} {policy.name}" if policy else REJECTED
        gone = [entries[i].request for i in refused]
        self.waiting.extend(gone)  # where vLLM looks for them
        self.finish_requests([request.request_id for request in gone], RequestStatus.FINISHED_ABORTED)
        self._refused += [(request, why) for request in gone]

    def _count(self, scheduler_output: Any, outputs: Mapping[int, Any]) -> None:
        now_s = time.monotonic()
        began_s = self._began.pop(id(scheduler_output), now_s)
        scheduled = scheduler_output.num_scheduled_tokens
        if scheduled:
            decoding = sum(1 for n in scheduled.values() if n == 1)
            prompt_tokens = sum(scheduled.values()) - decoding
            # steps may overlap (async scheduling): each begins when the one before has ended
            self._meter.learn(now_s - max(began_s, self._ended), prompt_tokens, decoding)
        self._ended = now_s
        counts = self._counts
        for output in _outputs(outputs):
            counts["generated_tokens"] += len(output.new_token_ids)
            if output.finish_reason is None:
                continue
            entry = self._entries.pop(output.request_id, None)
            if entry is not None:
                counts["finished"] += 1
                counts["prompt_tokens"] += entry.request.num_prompt_tokens
                self._predictor.learn(
                    self._model, entry.request.num_prompt_tokens, entry.request.num_output_tokens
                )

    def _view(self) -> ReplicaView:
        """As a policy sees this engine."""
        entries = self._entries
        left = [r.num_tokens - r.num_computed_tokens for r in (*self.waiting, *self.kv_holding_waiting)]
        prefilling = sum(r.num_tokens - r.num_computed_tokens for r in self.running if r.is_prefill_chunk)
        capacity = self.cache_config.num_gpu_blocks * self.block_size
        running, waiting = self.get_request_counts()
        step_s = self._meter.decode_step_s
        seats = self.max_num_active_reqs
        return ReplicaView(
            id=0,
            model=self._model,
            role=Role.MIXED,
            kind=self._settings.device_kind,
            node=os.uname().nodename,
            tp=self.parallel_config.tensor_parallel_size,
            pp=self.parallel_config.pipeline_parallel_size,
            ready_in_s=0.0,
            running=running,
            waiting=waiting,
            waiting_tokens=sum(left) + prefilling,
            kv_tokens=round(self.kv_cache_manager.usage * capacity),
            kv_capacity_tokens=capacity,
            outstanding_tokens=sum(entry.left_tokens for entry in entries.values()),
            max_num_seqs=seats,
            max_num_batched_tokens=self.max_num_scheduled_tokens,
            prefill_tokens_per_s=self._meter.prefill_tokens_per_s,
            decode_step_s=step_s,
            decode_tokens_per_s=seats / step_s,
            speed=1.0,
        )


class AsyncPolicyScheduler(SyncPolicyScheduler, AsyncScheduler):  # type: ignore[misc]
    """For GPUs: the next step is scheduled while this one runs."""


PolicyScheduler: type[Any] = SyncPolicyScheduler if current_platform.is_cpu() else AsyncPolicyScheduler
"""The one for this platform."""


def _samples_by_position(model_config: Any) -> bool:
    """Whether `sampler.SeededSampler` was loaded."""
    return any("SeededSampler" in str(name) for name in model_config.logits_processors or ())


def _number(extra: Mapping[str, Any], name: str, otherwise: float) -> float:
    """A finite number of a request's extra arguments; what is not one does not count."""
    value = extra.get(PREFIX + name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return otherwise
    return float(value)


def _outputs(outputs: Mapping[int, Any]) -> Iterable[Any]:
    for of_client in outputs.values():
        yield from of_client.outputs


def _served_name(model_config: Any) -> str:
    name = model_config.served_model_name
    return str(name[0] if isinstance(name, list) else name or model_config.model)
