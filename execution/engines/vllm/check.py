"""`python -m execution.engines.vllm.check`: does the installed vLLM fit this adapter? One line; exit code 2: no."""

from __future__ import annotations

import importlib
import sys

from loop.contracts import EngineError

_OURS = (
    "execution.engines.vllm.scheduler",
    "execution.engines.vllm.sampler",
    "execution.engines.vllm.endpoint",
    "execution.replicas.worker",
    "strategy.evolve.sandbox",
)
"""What runs beside vLLM: the environment must have what these need."""
_STARTED = (
    "vllm.entrypoints.openai.api_server",
    "vllm.v1.engine.llm_engine",
    "vllm.v1.worker.cpu_worker",
    "vllm.model_executor.models.llama",
)
"""What a start imports: importing it here writes its bytecode, and the first start is as fast as the next."""


def main() -> int:
    """The exit code."""
    try:
        from execution.engines.vllm import private  # noqa: PLC0415  it refuses other releases
    except (EngineError, ImportError) as problem:
        sys.stderr.write(f"{problem}\n")
        return 2
    problems = private.broken()
    for name in problems:
        sys.stderr.write(f"vLLM {private.VERSION}: {name}; execution/engines/vllm/private.py relies on it\n")
    if problems:
        return 2
    for module in _OURS:
        importlib.import_module(module)
    if private.current_platform.is_cpu():
        for module in _STARTED:
            importlib.import_module(module)
    sys.stdout.write(f"vLLM {private.VERSION}: all {private.expectations()} private names are in place\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
