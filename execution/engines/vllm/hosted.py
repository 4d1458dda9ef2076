"""vLLM in a worker process of the interpreter that has it, for a process whose own interpreter has not."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from execution.engines.vllm import environment
from execution.engines.vllm.backend import Shape
from execution.engines.vllm.flight import Asked, Chunk, Flight
from execution.engines.vllm.options import VllmOptions
from execution.replicas.remote import RemoteEngine
from loop.contracts import EngineCrashedError, EngineError, EngineFinish, EngineSpec

_FINISH = {
    EngineFinish.STOP: "stop",
    EngineFinish.LENGTH: "length",
    EngineFinish.CANCELLED: "abort",
    None: None,
}
_NO_LIMIT = 1 << 30


class HostedBackend:
    """Implements Backend by a VllmEngine in another process, that runs vLLM in its own."""

    def __init__(self, spec: EngineSpec, options: VllmOptions, directory: str) -> None:
        inner = replace(
            spec,
            model=directory,
            served_name=spec.served_name or spec.model,
            options={**spec.options, "mode": "in-process", "python": ""},
            limits=replace(spec.limits, max_waiting=_NO_LIMIT),  # who is admitted was decided here
        )
        self._engine = RemoteEngine(
            inner,
            python=environment.interpreter(options.python),
            env=environment.settings(options.threads),
            start_timeout_s=options.start_s,
        )
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def pid(self) -> int | None:
        """Of the worker."""
        return self._engine.pid

    async def start(self) -> Shape:
        """See Backend."""
        await self._engine.start()
        return Shape(self._engine.info.vocab_size, self._engine.info.max_model_len)

    def submit(self, asked: Asked, flight: Flight) -> None:
        """See Backend."""
        self._tasks[asked.id] = asyncio.get_running_loop().create_task(self._serve(asked, flight))

    def abort(self, request_id: str) -> None:
        """See Backend."""
        task = self._tasks.pop(request_id, None)
        if task is not None:
            task.cancel()

    async def control(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """See Backend."""
        return dict(await self._engine.call("control", dict(message)))

    async def metrics(self) -> Mapping[str, float]:
        """See Backend."""
        return dict(await self._engine.call("metric_values"))

    async def load_adapter(self, name: str, path: str) -> None:
        """See Backend."""
        await self._engine.call("load_adapter", name, path)

    async def unload_adapter(self, name: str) -> None:
        """See Backend."""
        await self._engine.call("unload_adapter", name)

    async def adapters(self) -> tuple[str, ...]:
        """See Backend."""
        return tuple(await self._engine.call("adapters"))

    async def sleep(self, level: int) -> None:
        """See Backend."""
        await self._engine.call("sleep", level)

    async def wake(self) -> None:
        """See Backend."""
        await self._engine.call("wake")

    async def stop(self) -> None:
        """See Backend."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._engine.stop()

    async def _serve(self, asked: Asked, flight: Flight) -> None:
        # stop strings are found here: the worker only makes tokens
        request = replace(flight.request, sampling=replace(flight.request.sampling, stop=()))
        try:
            async for output in self._engine.generate(request):
                flight.put(
                    Chunk(
                        output.token_ids,
                        output.logprobs,
                        _FINISH[output.finish],
                        cached_tokens=output.cached_tokens,
                        scheduled_s=output.scheduled_s,
                    )
                )
        except EngineError as error:
            flight.put(error)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001  the reader must learn of it
            flight.put(EngineCrashedError(f"request {asked.id}: {error!r}"))
        finally:
            if self._tasks.get(asked.id) is asyncio.current_task():
                del self._tasks[asked.id]
