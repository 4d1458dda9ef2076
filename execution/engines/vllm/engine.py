"""vLLM behind the Engine port.

    VllmEngine(EngineSpec("vllm", "tiny-llama"))                                   in this process
    VllmEngine(EngineSpec("vllm", "/models/x", options={"mode": "server"}))        a server of its own, over HTTP

vLLM makes the tokens; text, stop strings, admission and continuation are made here, the same in both modes. The queue
is ordered by the requests' priorities, or by a policy (`set_policy`). `generate` raises EngineBusyError for a request
that the policy refuses.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from execution.engines.models import model_directory
from execution.engines.tokenizer import load_tokenizer
from execution.engines.vllm import metrics, release
from execution.engines.vllm.asking import asked_of, most_tokens, problem_of
from execution.engines.vllm.backend import Backend
from execution.engines.vllm.flight import Asked, Flight
from execution.engines.vllm.options import VllmOptions
from loop.contracts import (
    EngineBusyError,
    EngineCrashedError,
    EngineDrainingError,
    EngineError,
    EngineFeature,
    EngineInfo,
    EngineLimits,
    EngineOutput,
    EngineRequest,
    EngineRequestError,
    EngineSpec,
    EngineStats,
    Tokenizer,
)


class VllmEngine:
    """One vLLM. Implements Engine, and what else vLLM can: policies, adapters, sleep."""

    def __init__(self, spec: EngineSpec) -> None:
        self._options = VllmOptions.of(spec)
        self._spec = spec
        self._limits = spec.limits
        self._check_limits(spec.limits)
        self._backend: Backend | None = None
        self._info: EngineInfo | None = None
        self._tokenizer: Tokenizer | None = None
        self._flights: dict[str, Flight] = {}
        self._adapters: set[str] = set()
        self._queued = 0
        """Waiting, by the last reading."""
        self._seeded_sampler = False
        self._draining = False
        self._stopped = False
        self._idle = asyncio.Event()
        self._idle.set()

    # -- the port ----------------------------------------------------------------------------------------

    @property
    def info(self) -> EngineInfo:
        """Known after `start`."""
        if self._info is None:
            raise EngineError("the vllm engine has not started")
        return self._info

    @property
    def pid(self) -> int | None:
        """Of the process that runs vLLM; None: this one does, or none that is ours."""
        return self._backend.pid if self._backend is not None else None

    @property
    def tokenizer(self) -> Tokenizer:
        """Known after `start`."""
        if self._tokenizer is None:
            raise EngineError("the vllm engine has not started")
        return self._tokenizer

    async def start(self) -> None:
        """Load, and serve one token. Raises EngineError."""
        if self._backend is not None or self._stopped:
            raise EngineError("the vllm engine was started before")
        spec, options = self._spec, self._options
        directory = await asyncio.to_thread(model_directory, spec.model, spec.seed)
        self._tokenizer = await asyncio.to_thread(load_tokenizer, directory)
        self._backend = backend = _backend(spec, options, str(directory))
        try:
            shape = await backend.start()
            await self._limit(spec.limits)
            report = await self._told({"do": "status"})
            if options.max_adapters:
                self._adapters.update(await backend.adapters())
            self._seeded_sampler = bool(report["seeded_sampler"])
            self._info = EngineInfo(
                "vllm", spec.served_name or spec.model, shape.vocab_size, shape.max_model_len,
                int(report["kv_capacity_tokens"]), int(report["block_tokens"]), self._features(),
            )  # fmt: skip
            async for _ in self.generate(EngineRequest("warm-up", (1, 2, 3))):
                pass
        except BaseException:
            await self.stop()
            raise

    async def generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        """See Engine."""
        flight, asked = self._admit(request)
        try:
            if isinstance(asked, EngineOutput):
                yield asked
                return
            self._running.submit(asked, flight)
            while True:
                output = await flight.next()
                yield output
                if output.finish is not None:
                    return
        finally:
            self._leave(flight)

    async def cancel(self, request_id: str) -> None:
        """See Engine."""
        flight = self._flights.get(request_id)
        if flight is not None and self._backend is not None:
            self._backend.abort(request_id)
            flight.put(None)

    async def set_limits(self, limits: EngineLimits) -> None:
        """See Engine; up to the ceilings that vLLM was started with."""
        self._check_limits(limits)
        await self._limit(limits)
        self._limits = limits

    async def stats(self) -> EngineStats:
        """See Engine: the queue from the scheduler, the counters from vLLM's Prometheus metrics."""
        backend = self._running
        report, values = await asyncio.gather(self._told({"do": "status"}), backend.metrics())
        self._queued = int(report["waiting"])
        return EngineStats(
            running=int(report["running"]),
            waiting=int(report["waiting"]),
            waiting_tokens=int(report["waiting_tokens"]),
            kv_tokens=int(report["kv_tokens"]),
            limits=self._limits,
            steps=int(report["steps"]),
            step_s=float(report["step_s"]),
            preemptions=int(values.get(metrics.PREEMPTIONS, 0)),
            prompt_tokens=int(values.get(metrics.PROMPT_TOKENS, 0)),
            generated_tokens=int(values.get(metrics.GENERATED_TOKENS, 0)),
            cached_tokens=int(values.get(metrics.CACHED_TOKENS, 0)),
            finished=int(values.get(metrics.FINISHED, 0)),
        )

    async def drain(self) -> None:
        """See Engine."""
        self._draining = True
        await self._idle.wait()

    async def stop(self) -> None:
        """See Engine."""
        self._stopped = self._draining = True
        for flight in list(self._flights.values()):
            flight.put(EngineCrashedError("the vllm engine was stopped"))
        backend, self._backend = self._backend, None
        if backend is not None:
            await backend.stop()

    # -- what else vLLM can ------------------------------------------------------------------------------

    async def set_policy(self, source: str, name: str = "") -> dict[str, Any]:
        """Order the queue by this policy from the next step on; "": by the requests' priorities again.

        Returns the report. Raises EngineRequestError when the policy is refused: the one before stays.
        """
        return await self._told({"do": "policy", "name": name, "source": source})

    async def report(self) -> dict[str, Any]:
        """The scheduler's own account: queue, limits, policy, faults."""
        return await self._told({"do": "status"})

    async def control(self, message: dict[str, Any]) -> dict[str, Any]:
        """One message of the control channel, and its answer as it is (see `plugin`)."""
        return await self._running.control(message)

    async def metric_values(self) -> dict[str, float]:
        """Values of vLLM's own metrics, those of `metrics.NAMES`."""
        return dict(await self._running.metrics())

    async def load_adapter(self, name: str, path: str) -> None:
        """Load a LoRA adapter from a directory; requests name it. Raises EngineRequestError."""
        if not self._options.max_adapters:
            raise EngineRequestError("this engine takes no adapters: start it with the option max_adapters")
        await self._running.load_adapter(name, path)
        self._adapters.add(name)

    async def unload_adapter(self, name: str) -> None:
        """Raises EngineRequestError."""
        await self._running.unload_adapter(name)
        self._adapters.discard(name)

    async def adapters(self) -> tuple[str, ...]:
        """Names of those loaded."""
        return await self._running.adapters()

    async def sleep(self, level: int = 1) -> None:
        """Abort what runs and rest; on GPUs the weights leave the device (level 1) or are dropped (2)."""
        await self._running.sleep(level)

    async def wake(self) -> None:
        """Serve again."""
        await self._running.wake()

    # -- details -----------------------------------------------------------------------------------------

    @property
    def _running(self) -> Backend:
        if self._backend is None:
            raise EngineCrashedError("the vllm engine does not run")
        return self._backend

    def _admit(self, request: EngineRequest) -> tuple[Flight, Asked | EngineOutput]:
        """(its flight, what vLLM is asked; or the last output: the answer was complete when its replica was lost).
        Raises as `Engine.generate` says."""
        if self._stopped or self._backend is None:
            raise EngineCrashedError("the vllm engine does not run")
        if self._draining:
            raise EngineDrainingError("the vllm engine drains: it takes nothing more")
        if request.id in self._flights:
            raise ValueError(f"request id {request.id!r} is in use")
        problem = problem_of(request, self.info, self._options.max_logprobs, self._adapters)
        if problem:
            raise EngineRequestError(f"request {request.id}: {problem}")
        waiting = max(len(self._flights) - self._limits.max_num_seqs, self._still_queued())
        if waiting >= self._limits.max_waiting:
            raise EngineBusyError(
                f"the queue is full: {waiting} requests wait, {self._limits.max_waiting} may"
            )
        flight = Flight(request, self.tokenizer)
        last = flight.over(most_tokens(request, self.info)) if request.generated else None
        self._flights[request.id] = flight
        self._idle.clear()
        if last is not None:
            return flight, last
        return flight, asked_of(request, self.info, self.tokenizer, seeded_sampler=self._seeded_sampler)

    def _features(self) -> frozenset[EngineFeature]:
        found = {EngineFeature.LOGPROBS, EngineFeature.PRIORITY, EngineFeature.POLICY, EngineFeature.SLEEP}
        if (
            self._seeded_sampler or self._options.device_kind != "cpu"
        ):  # on GPUs vLLM draws by position itself
            found.add(EngineFeature.SEED)
        if self._options.prefix_caching:
            found.add(EngineFeature.PREFIX_CACHE)
        if self._options.max_adapters:
            found.add(EngineFeature.ADAPTERS)
        return frozenset(found)

    def _still_queued(self) -> int:
        """The last reading of the queue, as far as it can still hold."""
        return min(self._queued, sum(not flight.started for flight in self._flights.values()))

    def _leave(self, flight: Flight) -> None:
        self._flights.pop(flight.request.id, None)
        if self._backend is not None:
            self._backend.abort(flight.request.id)
        if not self._flights:
            self._idle.set()

    def _check_limits(self, limits: EngineLimits) -> None:
        seats, tokens = self._options.ceilings(self._spec)
        for name, value, most in (
            ("max_num_seqs", limits.max_num_seqs, seats),
            ("max_num_batched_tokens", limits.max_num_batched_tokens, tokens),
            ("max_waiting", limits.max_waiting, None),
        ):
            if value < 1 or (most is not None and value > most):
                upto = f", and at most {most} (option {name}_ceiling)" if most is not None else ""
                raise ValueError(f"{name} must be at least 1{upto}, not {value}")

    async def _limit(self, limits: EngineLimits) -> None:
        await self._told({
            "do": "limits",
            "max_num_seqs": limits.max_num_seqs,
            "max_num_batched_tokens": limits.max_num_batched_tokens,
        })  # fmt: skip

    async def _told(self, message: dict[str, Any]) -> dict[str, Any]:
        answer = await self.control(message)
        if "error" in answer:
            raise EngineRequestError(f"vllm: {answer['message']}")
        return answer


def _backend(spec: EngineSpec, options: VllmOptions, directory: str) -> Backend:
    if options.mode == "server":
        from execution.engines.vllm.server import ServerBackend  # noqa: PLC0415

        return ServerBackend(spec, options, directory)
    if options.python or not release.importable():
        from execution.engines.vllm.hosted import HostedBackend  # noqa: PLC0415

        return HostedBackend(spec, options, directory)
    release.require()
    from execution.engines.vllm.inprocess import InProcessBackend  # noqa: PLC0415  imports vLLM

    return InProcessBackend(spec, options, directory)
