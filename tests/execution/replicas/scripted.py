"""An engine whose every step a test orders, and the world it runs in: who runs on which device, what fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field

from execution.engines.tokenizer import ByteTokenizer, Detokeniser
from loop.contracts import (
    DeviceView,
    EngineBusyError,
    EngineCrashedError,
    EngineDrainingError,
    EngineError,
    EngineFeature,
    EngineFinish,
    EngineInfo,
    EngineLimits,
    EngineOutput,
    EngineRequest,
    EngineRequestError,
    EngineStats,
    Plan,
    ReplicaSpec,
    Tokenizer,
)

MODEL = "tiny"
OTHER = "other"
CONTEXT_TOKENS = 1024


def device(name: str, *, available: bool = True) -> DeviceView:
    return DeviceView(name, "slot", "n0", available, 1.0, None, 1 << 30, 3.6, spot=False)


def devices(count: int) -> list[DeviceView]:
    return [device(f"d{i}") for i in range(count)]


def spec(*names: str, model: str = MODEL, seqs: int = 8) -> ReplicaSpec:
    return ReplicaSpec(model, names, tp=len(names), max_num_seqs=seqs, max_num_batched_tokens=256)


def plan(*specs: ReplicaSpec | str, reason: str = "") -> Plan:
    return Plan(tuple(spec(s) if isinstance(s, str) else s for s in specs), reason)


def echo(prompt: tuple[int, ...]) -> list[int]:
    """The answer to a prompt: the prompt's own bytes, over and over."""
    return [prompt[i % len(prompt)] for i in range(CONTEXT_TOKENS)]


@dataclass
class World:
    """All engines of one test."""

    exclusive: bool = True
    answer: Callable[[tuple[int, ...]], Sequence[int]] = echo
    manual: bool = False
    """Tokens come when the test says so (`give`), not by themselves."""
    chunk: Callable[[int], int] = lambda position: 1
    """Position -> tokens of the output that begins there."""
    engines: list[ScriptedEngine] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)
    """Device -> starts there that are still to fail."""
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    """Device -> starts there wait for this."""
    unbuildable: set[str] = field(default_factory=set)
    clashes: list[str] = field(default_factory=list)

    def build(self, wanted: ReplicaSpec) -> ScriptedEngine:
        if self.unbuildable.intersection(wanted.devices):
            raise ValueError(f"no engine fits on {wanted.devices}")
        engine = ScriptedEngine(self, wanted)
        self.engines.append(engine)
        return engine

    def running(self) -> list[ScriptedEngine]:
        return [e for e in self.engines if e.alive]

    def on(self, name: str) -> ScriptedEngine:
        """The engine that runs on a device."""
        found = [e for e in self.running() if name in e.spec.devices]
        assert found, f"nothing runs on {name}"
        return found[-1]


class ScriptedEngine:
    """Implements Engine; answers are the world's, one token a turn of the loop, or by order."""

    def __init__(self, world: World, wanted: ReplicaSpec) -> None:
        self.world = world
        self.spec = wanted
        self.limits = EngineLimits(wanted.max_num_seqs, wanted.max_num_batched_tokens)
        self.alive = self.started = self.stopped = self.draining = False
        self.busy = self.mute = self.deaf = False
        """Queue full; `stats` never answers; `cancel` is not heard."""
        self.refusal = ""
        self.requests: dict[str, EngineRequest] = {}
        self.seen: list[EngineRequest] = []
        self.cancelled: list[str] = []
        self.counters = EngineStats()
        self._tokenizer = ByteTokenizer()
        self._turns: dict[str, asyncio.Event] = {}
        self._allowed: dict[str, int] = {}
        self._ends: dict[str, EngineFinish] = {}
        self._why = ""

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(
            "scripted", self.spec.model, self._tokenizer.vocab_size, CONTEXT_TOKENS, 65_536, 16,
            frozenset({EngineFeature.SEED, EngineFeature.PREFIX_CACHE}),
        )  # fmt: skip

    @property
    def tokenizer(self) -> Tokenizer:
        return self._tokenizer

    async def start(self) -> None:
        for name in self.spec.devices:
            others = [e for e in self.world.running() if e is not self and name in e.spec.devices]
            if others and self.world.exclusive:
                self.world.clashes.append(f"{name}: {len(others)} besides")
        self.alive = True
        await asyncio.sleep(0)
        for name in self.spec.devices:
            gate = self.world.gates.get(name)
            if gate is not None:
                await gate.wait()
            if self.world.failures.get(name, 0):
                self.world.failures[name] -= 1
                raise EngineError(f"no luck on {name}")
        self.started = True

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineOutput, None]:
        if not self.alive:
            raise EngineCrashedError(self._why or "not there")
        if self.busy:
            raise EngineBusyError("full")
        if self.draining:
            raise EngineDrainingError("draining")
        if self.refusal:
            raise EngineRequestError(self.refusal)
        if request.id in self.requests:
            raise ValueError(f"{request.id} in use")
        self.seen.append(request)
        self.requests[request.id] = request
        turn = self._turns[request.id] = asyncio.Event()
        self._allowed[request.id] = 0
        try:
            async for output in self._outputs(request, turn):
                yield output
        finally:
            if self.requests.pop(request.id, None) is not None and request.id not in self._ends:
                self.cancelled.append(request.id)

    async def _outputs(
        self, request: EngineRequest, turn: asyncio.Event
    ) -> AsyncGenerator[EngineOutput, None]:
        own = len(request.prompt_token_ids) - request.generated
        prompt, prior = request.prompt_token_ids[:own], request.prompt_token_ids[own:]
        answer = list(self.world.answer(prompt))[: request.sampling.max_tokens]
        assert list(prior) == answer[: len(prior)], "it goes on with other tokens than were made"
        text = Detokeniser(self._tokenizer, request.sampling.stop, prior)
        position = len(prior)
        while True:
            await self._turn(request, turn)
            if self._ends.get(request.id) is EngineFinish.CANCELLED:
                yield EngineOutput(request.id, (), "", finish=EngineFinish.CANCELLED)
                return
            size = self.world.chunk(position)
            token_ids: list[int] = []
            said = ""
            finish = None
            while len(token_ids) < size and finish is None:
                token = answer[position]
                token_ids.append(token)
                said += text.push(token)
                position += 1
                if text.stop_reason is not None or (
                    token in self._tokenizer.eos_token_ids and not request.sampling.ignore_eos
                ):
                    finish = EngineFinish.STOP
                elif position == len(answer):
                    finish = EngineFinish.LENGTH
            if finish is not None:
                said += text.flush() if text.stop_reason is None else ""
                self._ends[request.id] = finish
                self.requests.pop(request.id, None)
            yield EngineOutput(
                request.id, tuple(token_ids), said, finish=finish, stop_reason=text.stop_reason
            )
            if finish is not None:
                return

    async def _turn(self, request: EngineRequest, turn: asyncio.Event) -> None:
        """Wait for the next output's turn. Raises EngineCrashedError."""
        if not self.world.manual:
            await asyncio.sleep(0)
        while (
            self.alive
            and self.world.manual
            and not self._allowed[request.id]
            and request.id not in self._ends
        ):
            turn.clear()
            await turn.wait()
        if self._allowed[request.id]:
            self._allowed[request.id] -= 1
        elif not self.alive:
            raise EngineCrashedError(self._why)

    def give(self, outputs: int = 1, request_id: str = "") -> None:
        """Let each request (or one) have some more outputs."""
        for name in [request_id] if request_id else list(self.requests):
            self._allowed[name] += outputs
            self._turns[name].set()

    async def cancel(self, request_id: str) -> None:
        if request_id in self.requests and not self.deaf:
            self._ends[request_id] = EngineFinish.CANCELLED
            self._turns[request_id].set()

    async def set_limits(self, limits: EngineLimits) -> None:
        if not self.alive:
            raise EngineCrashedError(self._why)
        self.limits = limits

    async def stats(self) -> EngineStats:
        if self.mute:
            await asyncio.Event().wait()
        if not self.alive:
            raise EngineCrashedError(self._why)
        return self.counters

    async def drain(self) -> None:
        self.draining = True

    async def stop(self) -> None:
        self.stopped = True
        self.crash("stopped")

    def crash(self, why: str = "killed") -> None:
        """Gone, from one moment to the next."""
        self.alive = False
        self._why = self._why or why
        for turn in self._turns.values():
            turn.set()
