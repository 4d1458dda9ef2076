"""vLLM as an engine, and as a plug-in for those who run vLLM themselves (docs/vllm.md).

    VllmEngine(spec)                              the Engine port, in process or over a server of its own
    scheduler.PolicyScheduler                     for `--scheduler-cls`: the queue ordered by a policy file
    plugin.register                               entry point `vllm.general_plugins`: the control channel
    endpoint.ControlEndpoint                      entry point `vllm.endpoint_plugins`: the same over HTTP
    sampler.SeededSampler                         for `--logits-processors`: seeds that survive a lost replica

Nothing here imports vLLM until it must; what it uses of vLLM's insides stands in `private`, and nowhere else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from execution.engines.vllm.engine import VllmEngine

__all__ = ["VllmEngine"]


def __getattr__(name: str) -> Any:
    """The engine, imported when it is asked for: vLLM's own processes import the plug-in alone."""
    if name == "VllmEngine":
        from execution.engines.vllm.engine import VllmEngine  # noqa: PLC0415

        return VllmEngine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
