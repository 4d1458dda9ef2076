"""The one place that knows vLLM's insides, and what must hold of them.

vLLM calls its scheduler interface not public. Everything that the plug-in and the engine use of it is imported here
and listed in EXPECTED; `broken()` compares the list with the installed release (a test runs it), so an upgrade that
moves something is found by name. A release other than `release.SUPPORTED` is refused at import.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

from execution.engines.vllm.release import require

VERSION = require()

from vllm.engine.arg_utils import EngineArgs  # noqa: E402  only once the release is known to fit
from vllm.lora.request import LoRARequest  # noqa: E402
from vllm.platforms import current_platform  # noqa: E402
from vllm.sampling_params import RequestOutputKind, SamplingParams  # noqa: E402
from vllm.v1.core.sched.async_scheduler import AsyncScheduler  # noqa: E402
from vllm.v1.core.sched.request_queue import FCFSRequestQueue  # noqa: E402
from vllm.v1.core.sched.scheduler import Scheduler  # noqa: E402
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason  # noqa: E402
from vllm.v1.request import Request, RequestStatus  # noqa: E402
from vllm.v1.sample.logits_processor.interface import LogitsProcessor, MoveDirectionality  # noqa: E402

__all__ = [
    "VERSION",
    "AsyncScheduler",
    "EngineArgs",
    "EngineCoreOutput",
    "EngineCoreOutputs",
    "FCFSRequestQueue",
    "FinishReason",
    "LoRARequest",
    "LogitsProcessor",
    "MoveDirectionality",
    "Request",
    "RequestOutputKind",
    "RequestStatus",
    "SamplingParams",
    "Scheduler",
    "broken",
    "core_of",
    "current_platform",
    "engine_core_class",
    "expectations",
    "llm_engine",
    "lora_orders",
]

EXPECTED: dict[str, tuple[str, ...]] = {
    # `module:name` -> parameters of a callable, in order
    "vllm.v1.core.sched.scheduler:Scheduler.schedule": ("self", "throttle_prefills"),
    "vllm.v1.core.sched.scheduler:Scheduler.update_from_output": (
        "self",
        "scheduler_output",
        "model_runner_output",
    ),
    "vllm.v1.core.sched.scheduler:Scheduler.add_request": ("self", "request"),
    "vllm.v1.core.sched.scheduler:Scheduler.finish_requests": ("self", "request_ids", "finished_status"),
    "vllm.v1.core.sched.scheduler:Scheduler.has_requests": ("self",),
    "vllm.v1.core.sched.scheduler:Scheduler.get_request_counts": ("self",),
    "vllm.v1.core.sched.scheduler:Scheduler.shutdown": ("self",),
    "vllm.v1.core.sched.request_queue:FCFSRequestQueue.add_request": ("self", "request"),
    "vllm.v1.engine.core:EngineCore.add_lora": ("self", "lora_request"),
    "vllm.v1.engine.core:EngineCore.remove_lora": ("self", "lora_id"),
    "vllm.v1.engine.core:EngineCore.sleep": ("self", "level", "mode"),
    "vllm.v1.engine.core:EngineCore.wake_up": ("self", "tags"),
    "vllm.v1.engine.llm_engine:LLMEngine.step": ("self",),
    "vllm.v1.engine.llm_engine:LLMEngine.abort_request": ("self", "request_ids", "internal"),
    "vllm.v1.engine.core_client:AsyncMPClient.call_utility_async": ("self", "method", "args"),
    "vllm.v1.sample.logits_processor.interface:LogitsProcessor.apply": ("self", "logits"),
    "vllm.v1.sample.logits_processor.interface:LogitsProcessor.update_state": ("self", "batch_update"),
    "vllm.entrypoints.openai.models.serving:OpenAIServingModels.load_lora_adapter": (
        "self",
        "request",
        "base_model_name",
    ),
    "vllm.entrypoints.openai.models.serving:OpenAIServingModels.unload_lora_adapter": ("self", "request"),
}
EXPECTED_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    # class -> what its own code keeps on `self`
    "vllm.v1.core.sched.scheduler:Scheduler": (
        "waiting",
        "kv_holding_waiting",
        "running",
        "requests",
        "max_num_running_reqs",
        "max_num_active_reqs",
        "max_num_scheduled_tokens",
        "scheduler_config",
        "parallel_config",
        "cache_config",
        "vllm_config",
        "kv_cache_manager",
        "block_size",
    ),
    "vllm.v1.request:Request": (
        "request_id",
        "priority",
        "arrival_time",
        "num_prompt_tokens",
        "num_computed_tokens",
        "num_preemptions",
        "sampling_params",
        "client_index",
        "status",
    ),
    "vllm.v1.engine.core:EngineCore": ("scheduler", "model_executor"),
    "vllm.v1.engine.core_client:InprocClient": ("engine_core",),
    "vllm.v1.engine.async_llm:AsyncLLM": ("engine_core",),
}
EXPECTED_FIELDS: dict[str, tuple[str, ...]] = {
    "vllm.v1.engine:EngineCoreOutput": ("request_id", "new_token_ids", "finish_reason", "stop_reason"),
    "vllm.v1.engine:EngineCoreOutputs": ("outputs",),
    "vllm.v1.core.sched.output:SchedulerOutput": ("num_scheduled_tokens", "total_num_scheduled_tokens"),
    "vllm.lora.request:LoRARequest": ("lora_name", "lora_int_id", "lora_path"),
    "vllm.entrypoints.serve.lora.protocol:LoadLoRAAdapterRequest": ("lora_name", "lora_path"),
    "vllm.entrypoints.serve.lora.protocol:UnloadLoRAAdapterRequest": ("lora_name",),
}


def broken() -> list[str]:
    """What of the lists above does not hold for the installed release, in words; empty: all does."""
    return [*_callables(), *_attributes(), *_fields()]


def expectations() -> int:
    """How many names `broken` looks at."""
    return len(EXPECTED) + sum(map(len, (*EXPECTED_ATTRIBUTES.values(), *EXPECTED_FIELDS.values())))


def llm_engine(arguments: EngineArgs) -> Any:
    """An LLMEngine whose core runs in this process."""
    from vllm.v1.engine.llm_engine import LLMEngine  # noqa: PLC0415  the server does not need it

    return LLMEngine.from_engine_args(arguments)


def core_of(engine: Any) -> Any:
    """The EngineCore of an LLMEngine in this process."""
    return engine.engine_core.engine_core


def engine_core_class() -> Any:
    """EngineCore, which the control channel extends."""
    from vllm.v1.engine.core import EngineCore  # noqa: PLC0415  it imports this module's users

    return EngineCore


def lora_orders() -> tuple[Any, Any]:
    """What a server's models are told: the types to load and to unload an adapter."""
    from vllm.entrypoints.serve.lora import protocol  # noqa: PLC0415  servers only

    return protocol.LoadLoRAAdapterRequest, protocol.UnloadLoRAAdapterRequest


def _find(path: str) -> Any:
    module, _, names = path.partition(":")
    found: Any = importlib.import_module(module)
    for name in names.split("."):
        found = getattr(found, name)
    return found


def _callables() -> Iterator[str]:
    for path, expected in EXPECTED.items():
        try:
            found = tuple(inspect.signature(_find(path)).parameters)
        except (ImportError, AttributeError) as error:
            yield f"{path} is gone ({error})"
            continue
        if found[: len(expected)] != expected:
            yield f"{path} takes {found}, not {expected}"


def _attributes() -> Iterator[str]:
    for path, names in EXPECTED_ATTRIBUTES.items():
        try:
            source = inspect.getsource(_find(path))
        except (ImportError, AttributeError) as error:
            yield f"{path} is gone ({error})"
            continue
        yield from (f"{path} keeps no self.{name}" for name in names if f"self.{name}" not in source)


def _fields() -> Iterator[str]:
    for path, names in EXPECTED_FIELDS.items():
        try:
            known = inspect.get_annotations(_find(path))
        except (ImportError, AttributeError) as error:
            yield f"{path} is gone ({error})"
            continue
        yield from (f"{path} has no field {name}" for name in names if name not in known)
