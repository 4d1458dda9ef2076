"""Engines: what turns prompts into tokens, and the ports that the gateway and the replica manager meet them at.

An engine serves one model in one process. All three (torch, vllm, simulated) pass one conformance suite, also
behind a process boundary. Times are `time.monotonic()` seconds unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from loop.contracts.plan import Plan
from loop.contracts.results import Reconfiguration


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose tokens, and when to stop."""

    max_tokens: int = 16
    """At least 1."""
    temperature: float = 1.0
    """0: greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0: all tokens."""
    seed: int | None = None
    """The token at position i is a function of (weights, earlier tokens, seed, i) alone, so a request that lost its
    replica goes on elsewhere as if nothing had been. None: the engine chooses one."""
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these; they are not in the text."""
    ignore_eos: bool = False
    logprobs: int | None = None
    """None: none; n: the chosen token's and those of the n likeliest tokens at each position."""


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One answer to generate."""

    id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    priority: float = 0.0
    """Order in the queue, lower first; then `arrival_s`, then the order of submission."""
    arrival_s: float = 0.0
    generated: int = 0
    """How many tokens at the end of the prompt are the answer's own first ones, made by a replica that was lost:
    positions, stop strings and `max_tokens` count from before them, outputs begin after them."""
    adapter: str | None = None
    """LoRA adapter, by the name that it was loaded under."""


class EngineFinish(StrEnum):
    """Why an answer ended. (OpenAI: `stop` and `length`.)"""

    STOP = "stop"  # end-of-sequence token or a stop string
    LENGTH = "length"  # max_tokens, or the model's context is full
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural logarithms of probabilities at one position, before temperature and truncation."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """(token id, logprob), likeliest first."""


@dataclass(frozen=True, slots=True)
class EngineOutput:
    """What came since the last output of the same request; the last one has `finish`."""

    request_id: str
    token_ids: tuple[int, ...]
    text: str
    """Whole characters only; nothing that may still become a stop string."""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: EngineFinish | None = None
    stop_reason: str | None = None
    """The stop string that ended it."""
    cached_tokens: int = 0
    """Prompt tokens found in the prefix cache."""
    scheduled_s: float = 0.0
    """When the first step that held some of the request began; 0: not told."""


class EngineFeature(StrEnum):
    """What an engine may or may not be able to do."""

    LOGPROBS = "logprobs"
    SEED = "seed"
    PRIORITY = "priority"
    PREFIX_CACHE = "prefix_cache"
    ADAPTERS = "adapters"
    SLEEP = "sleep"
    POLICY = "policy"  # runs a policy's `priority` itself, at each step


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Limits that may change while the engine runs."""

    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    max_waiting: int = 4096
    """Requests in the queue; beyond: EngineBusyError."""


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What to start; crosses into another process."""

    engine: str
    """`torch`, `vllm` or `simulated`."""
    model: str
    """Name of a built-in model, or a directory with config.json, safetensors and tokenizer files."""
    served_name: str = ""
    """As clients call it; empty: as `model`."""
    limits: EngineLimits = field(default_factory=EngineLimits)
    seed: int = 0
    options: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    """Of the engine: dtype, device, threads, block_tokens, kv_capacity_tokens..."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What runs."""

    engine: str
    model: str
    vocab_size: int
    max_model_len: int
    """Prompt and answer, tokens."""
    kv_capacity_tokens: int
    block_tokens: int
    features: frozenset[EngineFeature]


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The state now; counters from the start."""

    running: int = 0
    waiting: int = 0
    waiting_tokens: int = 0
    """Prompt tokens still to prefill, of waiting and running requests."""
    kv_tokens: int = 0
    limits: EngineLimits = field(default_factory=EngineLimits)
    steps: int = 0
    step_s: float = 0.0
    """Time in steps, in all."""
    preemptions: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    cached_tokens: int = 0
    finished: int = 0


class EngineError(RuntimeError):
    """An engine could not do what it was asked to; the message says what and why."""


class EngineBusyError(EngineError):
    """The queue is full; try again later or elsewhere."""


class EngineDrainingError(EngineError):
    """Accepts nothing more."""


class EngineCrashedError(EngineError):
    """The engine is gone; what it had begun may be done elsewhere."""


class EngineRequestError(EngineError):
    """The request cannot be served by this engine, ever: too long, out of vocabulary, unknown adapter."""


class Tokenizer(Protocol):
    """Text to tokens and back."""

    @property
    def vocab_size(self) -> int:
        """Ids are below this."""

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text; special tokens in it are text."""

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Ids of a conversation (role, content), with the opening of the answer. Raises ValueError."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text; bytes that are no characters become U+FFFD; special tokens are left out."""


class Engine(Protocol):
    """Serves one model. All methods belong to one event loop; none blocks it for long."""

    @property
    def info(self) -> EngineInfo:
        """Known after `start`."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Known after `start`."""

    async def start(self) -> None:
        """Load and warm up: the first request is served at full speed. Raises EngineError."""

    def generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        """Outputs of one request. Closing the iterator, or cancelling the task that reads it, cancels the request
        and frees what it held by the next step. A slow reader holds up nobody else.

        Raises (at the first `__anext__`): EngineBusyError, EngineDrainingError, EngineRequestError, or ValueError
        for an id in use; later EngineCrashedError.
        """

    async def cancel(self, request_id: str) -> None:
        """End a request: its iterator yields a last output, CANCELLED. Unknown ids are ignored."""

    async def set_limits(self, limits: EngineLimits) -> None:
        """From the next step on. Running requests above a lower limit finish. Raises ValueError."""

    async def stats(self) -> EngineStats:
        """The state now. Raises EngineCrashedError."""

    async def drain(self) -> None:
        """Accept nothing more; return when nothing is in flight."""

    async def stop(self) -> None:
        """End everything in flight (EngineCrashedError) and free all. Idempotent; also before `start`."""


# ---- What the gateway talks to -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ServeRequest:
    """A request as the gateway has accepted it."""

    id: str
    model: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    tier: int = 0
    deadline_s: float | None = None
    """`time.monotonic()` by which it must be done; None: no limit."""
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model that can be asked for."""

    name: str
    max_model_len: int
    created: int
    """Unix seconds."""
    ready: bool
    """Some replica serves it now."""


class ServeError(RuntimeError):
    """A request is not served, or not to its end."""


class UnknownModelError(ServeError):
    """404."""


class InvalidRequestError(ServeError):
    """400: too long for any replica, out of vocabulary, unknown adapter."""


class RejectedError(ServeError):
    """429: the policy's admission or full queues."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UnavailableError(ServeError):
    """503: no replica, and none to come before the deadline; or shutting down."""


class DeadlineError(ServeError):
    """504."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One Prometheus series."""

    name: str
    kind: str
    """`counter` or `gauge`."""
    help: str
    value: float
    labels: tuple[tuple[str, str], ...] = ()


class ServingBackend(Protocol):
    """Models behind replicas, steered by the current policy."""

    def models(self) -> tuple[ModelCard, ...]:
        """All that are served."""

    def tokenizer(self, model: str) -> Tokenizer:
        """Raises UnknownModelError."""

    def serve(self, request: ServeRequest) -> AsyncIterator[EngineOutput]:
        """Route, queue, stream. A replica that dies is replaced by another one, unnoticed: no token twice, none
        missing. Closing the iterator cancels. Raises ServeError (its kinds say which status)."""

    def metrics(self) -> Iterable[Metric]:
        """Of engines, replicas and policy."""


# ---- What carries out plans ----------------------------------------------------------------------------------------


class ReplicaStage(StrEnum):
    """The life of a live replica."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class LiveReplica:
    """One replica of a plan, in its own process."""

    id: int
    model: str
    devices: tuple[str, ...]
    stage: ReplicaStage
    pid: int | None
    started_s: float
    ready_s: float | None
    info: EngineInfo | None


class ReplicaManagerPort(Protocol):
    """Carries out plans on real processes."""

    async def apply(self, plan: Plan) -> Reconfiguration:
        """Start what is new, keep what stays, drain and stop the rest once its successors are ready. Returns when
        the change is under way. Raises PlanError, having changed nothing."""

    async def settled(self) -> None:
        """Return when no replica is starting, draining or being replaced."""

    def replicas(self) -> tuple[LiveReplica, ...]:
        """All that are alive."""

    async def close(self) -> None:
        """End every process that it started."""
