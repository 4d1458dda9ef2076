"""One engine without its front: commands in, a step, tokens out. Everything here runs in the step thread."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from execution.engines.models import EngineModelConfig, load_config, model_directory
from execution.engines.tokenizer import load_tokenizer
from execution.engines.torch.decode import DecodeStep
from execution.engines.torch.kv import BlockBudget, LaneCache
from execution.engines.torch.memory import Room, plan_memory
from execution.engines.torch.model import build_model
from execution.engines.torch.options import TorchOptions
from execution.engines.torch.prefix import PrefixStore
from execution.engines.torch.rope import rotation_table
from execution.engines.torch.sampler import Wish, logprobs, sample
from execution.engines.torch.scheduler import Schedule, Scheduler
from execution.engines.torch.sequence import Sequence, Sink
from execution.engines.torch.step import Chunk, Row, build_step
from execution.engines.torch.weights import load_weights
from loop.contracts.engine import EngineError, EngineFinish, EngineLimits, EngineSpec, Tokenizer, TokenLogprob

DECODE = "decode"
"""Name of the whole decode step among the modules."""


class StepObserver(Protocol):
    """Who watches the steps; called by the step thread, so it had better be quick."""

    def begins(self, schedule: Schedule) -> None:
        """A step that has something to do is about to run."""

    def ended(self, schedule: Schedule, taken_s: float) -> None:
        """It is over; tokens are chosen."""


@dataclass(slots=True)
class Counters:
    """What happened since the start."""

    steps: int = 0
    step_s: float = 0.0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    cached_tokens: int = 0
    finished: int = 0


class EngineCore:
    """Model, memory and scheduler of one engine; not thread-safe."""

    def __init__(self, spec: EngineSpec, options: TorchOptions) -> None:
        """Loads. Raises EngineError."""
        self.device = _device(options.device)
        if options.threads:
            torch.set_num_threads(options.threads)  # of this thread, in builds with OpenMP
        directory = model_directory(spec.model, spec.seed)
        self.config: EngineModelConfig = load_config(directory)
        self.tokenizer: Tokenizer = load_tokenizer(directory)
        self.dtype = _dtype(options.dtype, self.device, self.config)
        self.model = self._load(Path(directory), spec.seed)
        room = plan_memory(self.config, options, spec.limits, self.device, self.dtype.itemsize)
        self.room: Room = room
        self.block_tokens = options.block_tokens
        self._cache = LaneCache(self.config, room.lanes, room.max_model_len, self.dtype, self.device)
        self._budget = BlockBudget(room.kv_tokens, options.block_tokens)
        store = None
        if room.prefix_tokens >= options.block_tokens:
            blocks = room.prefix_tokens // options.block_tokens
            store = PrefixStore(self.config, blocks, options.block_tokens, self._cache)
        self.scheduler = Scheduler(spec.limits, self._cache, self._budget, store)
        self.counters = Counters()
        self.observer: StepObserver | None = None
        self._table = rotation_table(self.config, room.max_model_len, self.device)
        self._eos = self.tokenizer.eos_token_ids | self.config.eos_token_ids
        self._decode: nn.Module = DecodeStep(self.model, self._cache, self._table)

    def add(self, sequence: Sequence, sink: Sink) -> None:
        """A new request; one that is over already ends at once."""
        finish = sequence.over_before_it_began()
        if finish is None:
            self.scheduler.add(sequence)
            return
        sequence.ended = True
        self.counters.finished += 1
        sink.put(sequence, None, sequence.text.flush(), None, finish)

    def cancel(self, sequence: Sequence, sink: Sink) -> None:
        """End a request before its time."""
        if sequence.ended:
            return
        self.scheduler.end(sequence)
        self.counters.finished += 1
        sink.put(sequence, None, "", None, EngineFinish.CANCELLED)

    def set_limits(self, limits: EngineLimits) -> None:
        """From the next step on."""
        self.scheduler.limits = limits

    def step(self, sink: Sink) -> bool:
        """Run one step; False when there was nothing to do."""
        began_s = time.monotonic()
        observer = self.observer
        with torch.inference_mode():
            schedule = self.scheduler.schedule()
            if not schedule:
                return False
            if observer is not None:
                observer.begins(schedule)
            for sequence in (*schedule.decodes, *(s for s, _ in schedule.prompts)):
                sequence.scheduled_s = sequence.scheduled_s or began_s
            wanting, logits, best = self._forward(schedule)
            if wanting:
                self._emit(wanting, logits, best, sink)
        self.counters.steps += 1
        taken_s = time.monotonic() - began_s
        self.counters.step_s += taken_s
        if observer is not None:
            observer.ended(schedule, taken_s)
        return True

    def warm_up(self) -> None:
        """Run the model once in each of the shapes that a step may have, so that the first request is not slow."""
        length = min(32, self.room.max_model_len - 1)
        lanes = min(2, self.room.lanes)
        with torch.inference_mode():
            for start in {0, length // 2}:
                chunk = Chunk([0] * (length - start), start, lanes - 1, last=True)
                rows = [Row(0, 0, 0)] if lanes > 1 else []
                self.model(build_step(rows, [chunk], self._cache, self._table))
            for count in sorted({1, lanes, min(16, self.room.lanes)}):
                rows = [Row(0, length, lane) for lane in range(count)]
                sample(self.model(build_step(rows, [], self._cache, self._table)), [])

    @property
    def kv_layers(self) -> list[torch.Tensor]:
        """KV of each layer [lanes, keys then values of each head, positions, head_dim]; the step thread writes to it."""
        return self._cache.layers

    @property
    def rotations(self) -> torch.Tensor:
        """Of all positions [length, 1, head_dim / 2], complex64."""
        return self._table

    def modules(self) -> dict[str, nn.Module]:
        """All parts of the model by name, and the whole decode step as `decode`."""
        named = {name: module for name, module in self.model.named_modules() if name}
        return named | {DECODE: self._decode}

    def replace_module(self, name: str, module: nn.Module, *, same_function: bool) -> nn.Module:
        """Put another module in the place of a named one, which is returned. Raises KeyError."""
        if name == DECODE:
            old, self._decode = self._decode, module
            if not same_function:
                self.scheduler.drop_prefixes()
            return old
        owner, _, last = name.rpartition(".")
        try:
            holder, old = self.model.get_submodule(owner), self.model.get_submodule(name)
        except AttributeError:
            holder = old = self.model
        if old is self.model:
            raise KeyError(f"no module {name!r} in this model")
        setattr(holder, last, module)
        if not same_function:
            self.scheduler.drop_prefixes()
        return old

    def _forward(self, schedule: Schedule) -> tuple[list[Sequence], torch.Tensor, list[int] | None]:
        """Sequences whose next token is wanted, their logits, and the likeliest tokens where these are known."""
        rows = [Row(s.tokens[-1], s.computed, s.lane) for s in schedule.decodes]
        chunks = []
        wanting = list(schedule.decodes)
        for sequence, size in schedule.prompts:
            end = sequence.computed + size
            last = end == len(sequence.tokens)
            chunks.append(
                Chunk(sequence.tokens[sequence.computed : end], sequence.computed, sequence.lane, last)
            )
            if last:
                wanting.append(sequence)
        logits, best = self._logits(rows, chunks)
        for sequence in schedule.decodes:
            sequence.computed += 1
        for sequence, size in schedule.prompts:
            sequence.computed += size
            if sequence.computed == len(sequence.tokens):
                self.scheduler.remember(sequence)
        return wanting, logits, best

    def _logits(self, rows: list[Row], chunks: list[Chunk]) -> tuple[torch.Tensor, list[int] | None]:
        """One pass over all rows; two where decoding alone is done by something faster."""
        if not chunks:
            logits, best = self._decode(rows)
            return logits, best
        if not rows or not getattr(self._decode, "serves", _never)(len(rows)):
            return self.model(build_step(rows, chunks, self._cache, self._table)), None
        decoded = self._decode(rows)[0]
        prompted = self.model(build_step([], chunks, self._cache, self._table))
        return torch.cat((decoded, prompted)), None

    def _emit(
        self, wanting: list[Sequence], logits: torch.Tensor, best: list[int] | None, sink: Sink
    ) -> None:
        """Choose tokens, and hand them out."""
        if best is not None and all(s.sampling.temperature <= 0 for s in wanting):
            tokens = best
        else:
            tokens = sample(logits, [Wish(s.sampling, s.seed, s.generated) for s in wanting])
        wished = _logprobs(wanting, logits, tokens)
        for sequence, token in zip(wanting, tokens, strict=True):
            self._count(sequence)
            if token < 0:
                self.scheduler.spoiled(sequence)
                self.scheduler.end(sequence)
                self.counters.finished += 1
                sink.fail(
                    sequence, "the model's output is not a number: its weights or a replaced module are bad"
                )
                continue
            text, finish = sequence.append(token, self._eos)
            self.counters.generated_tokens += 1
            if finish is not None:
                self.scheduler.end(sequence)
                self.counters.finished += 1
            sink.put(sequence, token, text, wished.get(sequence), finish)

    def _count(self, sequence: Sequence) -> None:
        """Count a prompt once, at its first token."""
        prompt = len(sequence.request.prompt_token_ids)
        if len(sequence.tokens) == prompt:
            self.counters.prompt_tokens += prompt
            self.counters.cached_tokens += sequence.cached

    def _load(self, directory: Path, seed: int) -> nn.Module:
        try:
            return build_model(
                self.config, load_weights(directory, self.config, seed), self.dtype, self.device
            )
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, EngineError):
                raise
            raise EngineError(f"{directory}: the model does not load on {self.device}: {error}") from error


def _never(rows: int) -> bool:  # noqa: ARG001
    return False


def _logprobs(
    wanting: list[Sequence], logits: torch.Tensor, tokens: list[int]
) -> dict[Sequence, TokenLogprob]:
    asking = [
        (i, s.sampling.logprobs)
        for i, s in enumerate(wanting)
        if s.sampling.logprobs is not None and tokens[i] >= 0
    ]
    if not asking:
        return {}
    rows = [i for i, _ in asking]
    found = logprobs(logits[rows], [tokens[i] for i in rows], [count for _, count in asking])
    return {wanting[i]: logprob for i, logprob in zip(rows, found, strict=True)}


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise EngineError(f"torch engine: option device: {name!r} is no device: {error}") from error
    if device.type not in {"cpu", "cuda"}:
        raise EngineError(f"torch engine: option device: cpu or cuda, not {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EngineError(
            f"torch engine: option device: {name!r}: torch sees {torch.cuda.device_count()} GPUs"
        )
    return device


def _dtype(name: str, device: torch.device, config: EngineModelConfig) -> torch.dtype:
    if name == "auto":
        stored_wide = config.dtype == "float32"
        return torch.float32 if device.type == "cpu" or stored_wide else torch.bfloat16
    return torch.float32 if name == "float32" else torch.bfloat16
