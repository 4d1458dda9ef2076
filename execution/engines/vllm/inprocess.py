"""vLLM in this process: LLMEngine with its core on a thread of its own, driven step by step."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

from execution.engines.vllm import environment, metrics
from execution.engines.vllm.backend import Shape
from execution.engines.vllm.flight import Asked, Chunk, Flight
from execution.engines.vllm.options import SAMPLER, VllmOptions
from loop.contracts import EngineCrashedError, EngineError, EngineRequestError, EngineSpec, TokenLogprob

_T = TypeVar("_T")
_log = logging.getLogger(__name__)
_STOP_S = 30.0


class InProcessBackend:
    """Implements Backend. All of vLLM happens on one thread: calls are handed to it between two steps."""

    def __init__(self, spec: EngineSpec, options: VllmOptions, directory: str) -> None:
        self._spec = spec
        self._options = options
        self._directory = directory
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._engine: Any = None
        self._dead = ""
        # of the thread
        self._flights: dict[str, Flight] = {}
        self._loras: dict[str, Any] = {}
        self._lora_count = 0

    @property
    def pid(self) -> int | None:
        """None: it runs here."""
        return None

    async def start(self) -> Shape:
        """Import vLLM, load the model."""
        self._loop = asyncio.get_running_loop()
        for name, value in environment.settings(self._options.threads).items():
            os.environ.setdefault(name, value)
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # what this backend is built on
        self._thread = threading.Thread(target=self._run, name="vllm", daemon=True)
        self._thread.start()
        return await self._call(self._build)

    def submit(self, asked: Asked, flight: Flight) -> None:
        """See Backend."""
        if self._dead:
            raise EngineCrashedError(self._dead)
        self._orders.put(lambda: self._add(asked, flight))

    def abort(self, request_id: str) -> None:
        """See Backend."""
        self._orders.put(lambda: self._abort(request_id))

    async def control(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """See Backend."""
        from execution.engines.vllm.plugin import obey  # noqa: PLC0415  with the engine, not before

        answer = await self._call(lambda: obey(self._core.scheduler, message))
        return await asyncio.wrap_future(answer) if isinstance(answer, Future) else answer

    async def metrics(self) -> Mapping[str, float]:
        """From the registry of this process."""
        from prometheus_client import REGISTRY  # noqa: PLC0415  comes with vLLM

        found = REGISTRY.restricted_registry(list(metrics.NAMES)).collect()
        return metrics.summed((s.name, s.labels, s.value) for metric in found for s in metric.samples)

    async def load_adapter(self, name: str, path: str) -> None:
        """See Backend."""
        await self._call(lambda: self._load_adapter(name, path))

    async def unload_adapter(self, name: str) -> None:
        """See Backend."""
        await self._call(lambda: self._unload_adapter(name))

    async def adapters(self) -> tuple[str, ...]:
        """See Backend."""
        return await self._call(lambda: tuple(self._loras))

    async def sleep(self, level: int) -> None:
        """See Backend."""
        done = await self._call(lambda: self._sleep(level))
        if isinstance(done, Future):
            await asyncio.wrap_future(done)

    async def wake(self) -> None:
        """See Backend."""
        await self._call(lambda: self._core.wake_up(None))

    async def stop(self) -> None:
        """See Backend."""
        thread, self._thread = self._thread, None
        self._dead = self._dead or "the vllm engine was stopped"
        if thread is not None:
            self._orders.put(None)
            await asyncio.to_thread(thread.join, _STOP_S)

    # -- handing over ------------------------------------------------------------------------------------

    async def _call(self, what: Callable[[], _T]) -> _T:
        """Run on the thread, between two steps."""
        if self._dead or self._thread is None:
            raise EngineCrashedError(self._dead or "the vllm engine has not started")
        done: Future[_T] = Future()

        def order() -> None:
            if not done.set_running_or_notify_cancel():
                return
            try:
                done.set_result(what())
            except BaseException as problem:  # noqa: BLE001  the caller gets it
                done.set_exception(problem)

        self._orders.put(order)
        waiting = asyncio.wrap_future(done)
        while not waiting.done():
            await asyncio.wait((waiting,), timeout=1.0)
            if not waiting.done() and self._dead:
                raise EngineCrashedError(self._dead)
        return waiting.result()

    def _tell(self, items: list[tuple[Flight, Chunk | BaseException]]) -> None:
        """To the event loop, in one crossing."""

        def put() -> None:
            for flight, item in items:
                flight.put(item)

        if items and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
                self._loop.call_soon_threadsafe(put)

    # -- the thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._obey_orders():
                if self._busy():
                    self._step()
        except BaseException as problem:  # noqa: BLE001  whoever waits must learn of it
            _log.exception("the vllm engine died")
            self._dead = f"the vllm engine died: {type(problem).__name__}: {problem}"
        finally:
            self._dead = self._dead or "the vllm engine was stopped"
            self._tell([(flight, EngineCrashedError(self._dead)) for flight in self._flights.values()])
            self._flights.clear()
            engine, self._engine = self._engine, None
            if engine is not None:
                with contextlib.suppress(Exception):  # it is being thrown away
                    engine.engine_core.shutdown()

    def _obey_orders(self) -> bool:
        """Do what was handed over; wait for something when there is nothing to step. False: stop."""
        while True:
            try:
                order = self._orders.get(block=not self._busy())
            except queue.Empty:
                return True
            if order is None:
                return False
            order()

    def _busy(self) -> bool:
        return self._engine is not None and bool(self._core.scheduler.has_requests())

    @property
    def _core(self) -> Any:
        from execution.engines.vllm import private  # noqa: PLC0415

        return private.core_of(self._engine)

    def _build(self) -> Shape:
        from execution.engines.vllm import private  # noqa: PLC0415  this imports vLLM

        options = self._options
        seats, tokens = options.ceilings(self._spec)
        try:
            arguments = private.EngineArgs(
                model=self._directory,
                skip_tokenizer_init=True,
                dtype=options.dtype,
                seed=self._spec.seed,
                max_model_len=options.max_model_len or None,
                enforce_eager=options.eager,
                block_size=options.block_tokens,
                kv_cache_memory_bytes=options.kv_cache_bytes,
                enable_prefix_caching=options.prefix_caching,
                tensor_parallel_size=options.tp,
                pipeline_parallel_size=options.pp,
                max_num_seqs=seats,
                max_num_batched_tokens=tokens,
                max_logprobs=options.max_logprobs,
                enable_lora=options.max_adapters > 0,
                max_loras=max(options.max_adapters, 1),
                max_lora_rank=options.max_lora_rank,
                scheduler_cls="execution.engines.vllm.scheduler.PolicyScheduler",
                logits_processors=[SAMPLER] if options.device_kind == "cpu" else None,
                additional_config=options.plugin,
                disable_log_stats=False,
            )
            self._engine = private.llm_engine(arguments)
        except Exception as problem:
            raise EngineError(f"vLLM cannot serve {self._directory}: {problem}") from problem
        config = self._engine.vllm_config.model_config
        return Shape(int(config.get_vocab_size()), int(config.max_model_len))

    def _add(self, asked: Asked, flight: Flight) -> None:
        from execution.engines.vllm import private  # noqa: PLC0415

        if self._engine is None:
            self._tell([(flight, EngineCrashedError(self._dead or "the vllm engine does not run"))])
            return
        try:
            parameters = private.SamplingParams(
                max_tokens=asked.max_tokens,
                temperature=asked.temperature,
                top_p=asked.top_p,
                top_k=asked.top_k,
                seed=asked.seed,
                logprobs=asked.logprobs,
                stop_token_ids=list(asked.stop_token_ids),
                ignore_eos=True,  # else vLLM adds the model's own to the stop tokens
                detokenize=False,
                output_kind=private.RequestOutputKind.DELTA,
                extra_args=dict(asked.extra),
            )
            prompt = {"type": "token", "prompt_token_ids": list(asked.prompt_token_ids)}
            lora = self._loras[asked.adapter] if asked.adapter is not None else None
            self._engine.add_request(asked.id, prompt, parameters, lora_request=lora)
        except Exception as problem:  # noqa: BLE001  whatever vLLM raises, this request is what it refuses
            self._tell([(flight, EngineRequestError(f"request {asked.id}: {problem}"))])
        else:
            self._flights[asked.id] = flight

    def _abort(self, request_id: str) -> None:
        if self._flights.pop(request_id, None) is not None and self._engine is not None:
            self._engine.abort_request([request_id])

    def _step(self) -> None:
        told: list[tuple[Flight, Chunk | BaseException]] = []
        for output in self._engine.step():
            flight = self._flights.get(output.request_id)
            if flight is None:
                continue
            if output.finished:
                del self._flights[output.request_id]
            told.append((flight, _chunk(output, flight.request.sampling.logprobs)))
        self._tell(told)

    def _sleep(self, level: int) -> Any:
        gone, self._flights = self._flights, {}
        self._engine.abort_request(list(gone))
        self._tell([(flight, Chunk(finish="abort")) for flight in gone.values()])
        return self._core.sleep(level, "abort")

    def _load_adapter(self, name: str, path: str) -> None:
        from execution.engines.vllm import private  # noqa: PLC0415

        if name in self._loras:
            raise EngineRequestError(f"adapter {name!r} is loaded already")
        self._lora_count += 1
        try:
            request = private.LoRARequest(lora_name=name, lora_int_id=self._lora_count, lora_path=path)
            self._core.add_lora(request)
        except Exception as problem:
            raise EngineRequestError(f"adapter {name!r} cannot be loaded: {problem}") from problem
        self._loras[name] = request

    def _unload_adapter(self, name: str) -> None:
        request = self._loras.pop(name, None)
        if request is None:
            raise EngineRequestError(f"adapter {name!r} is not loaded")
        self._core.remove_lora(request.lora_int_id)


def _chunk(output: Any, asked: int | None) -> Chunk:
    """A RequestOutput of one step."""
    first = output.outputs[0]
    reason = first.stop_reason
    scheduled_s = output.metrics.scheduled_ts if output.metrics is not None else 0.0
    return Chunk(
        tuple(first.token_ids),
        _logprobs(first, asked) if asked is not None else (),
        first.finish_reason,
        reason if isinstance(reason, str) else None,
        output.num_cached_tokens or 0,
        scheduled_s,
    )


def _logprobs(completion: Any, asked: int) -> tuple[TokenLogprob, ...]:
    found = []
    for token_id, position in zip(completion.token_ids, completion.logprobs or (), strict=True):
        ranked = sorted((entry.rank, i, float(entry.logprob)) for i, entry in position.items())
        top = tuple((i, logprob) for _, i, logprob in ranked[:asked])
        found.append(TokenLogprob(token_id, float(position[token_id].logprob), top))
    return tuple(found)
