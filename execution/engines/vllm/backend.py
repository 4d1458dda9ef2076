"""What the engine asks of vLLM, wherever that runs: in this process, or behind HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from execution.engines.vllm.flight import Asked, Flight


@dataclass(frozen=True, slots=True)
class Shape:
    """What came up."""

    vocab_size: int
    max_model_len: int


class Backend(Protocol):
    """All methods belong to one event loop. Each raises EngineCrashedError once vLLM is gone."""

    @property
    def pid(self) -> int | None:
        """Of the process that runs vLLM, where it is another one and ours."""

    async def start(self) -> Shape:
        """Raises EngineError."""

    def submit(self, asked: Asked, flight: Flight) -> None:
        """Serve a request: its chunks, or the error that ends it, go to `flight`."""

    def abort(self, request_id: str) -> None:
        """Free what a request holds; nothing more comes of it."""

    async def control(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """One message of the control channel (`plugin`)."""

    async def metrics(self) -> Mapping[str, float]:
        """Values of `metrics.NAMES`."""

    async def load_adapter(self, name: str, path: str) -> None:
        """Load a LoRA adapter. Raises EngineRequestError."""

    async def unload_adapter(self, name: str) -> None:
        """Raises EngineRequestError."""

    async def adapters(self) -> tuple[str, ...]:
        """Names of those loaded."""

    async def sleep(self, level: int) -> None:
        """Free the device's memory, as far as vLLM can there; nothing is served until `wake`."""

    async def wake(self) -> None:
        """Serve again."""

    async def stop(self) -> None:
        """Free everything; idempotent."""
