"""What the twin needs of hw_profiles, as Protocols: a test may hand it a linear cost model instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class ProfileLike(Protocol):
    """The share of a device profile that the twin reads."""

    @property
    def memory_bytes(self) -> int:
        """Device memory."""

    @property
    def memory_bytes_per_s(self) -> float:
        """Its bandwidth: what tells the slowest device of a mixed group."""

    @property
    def usd_per_hour(self) -> float:
        """Price."""


class DeviceLike(Protocol):
    """One device of the cluster."""

    @property
    def id(self) -> str:
        """Unique in the cluster."""

    @property
    def kind(self) -> str:
        """Name of its profile, e.g. `h100-sxm`."""

    @property
    def node(self) -> str:
        """The node it sits in."""

    @property
    def spot(self) -> bool:
        """May be reclaimed by its owner."""

    @property
    def profile(self) -> ProfileLike:
        """What it can do."""


class TopologyLike(Protocol):
    """The cluster."""

    @property
    def devices(self) -> Mapping[str, Any]:
        """Id -> DeviceLike, in order."""

    @property
    def nodes(self) -> Mapping[str, tuple[str, ...]]:
        """Node id -> ids of its devices."""

    def bandwidth_bytes_per_s(self, a: str, b: str) -> float:
        """Between two devices."""

    def latency_s(self, a: str, b: str) -> float:
        """Between two devices."""


class Costs(Protocol):
    """Speed and capacity of one replica (hw_profiles.performance.ReplicaPerformance)."""

    @property
    def kv_capacity_tokens(self) -> int:
        """Tokens of KV cache that fit."""

    @property
    def padded(self) -> bool:
        """Contexts of a batch cost as if all were as long as the longest: `kv_decode_tokens` below is then
        sequences x longest context, not the sum of contexts."""

    @property
    def kv_bytes_per_token(self) -> int:
        """What a transfer moves for each token of context."""

    @property
    def start_s(self) -> float:
        """Process start, weights load and warm-up."""

    @property
    def busy_watts(self) -> float:
        """Of the whole replica, while iterating."""

    @property
    def idle_watts(self) -> float:
        """Of the whole replica, while not."""

    @property
    def first_token_s(self) -> float:
        """Per request, outside the iterations: tokenising, sending the first token back."""

    @property
    def prefill_tokens_per_s(self) -> float:
        """Estimate of prefill alone."""

    def iteration_s(
        self, n_decode: int, kv_decode_tokens: int, chunks: Sequence[tuple[int, int]] = ()
    ) -> float:
        """One engine iteration: `n_decode` sequences whose contexts sum to `kv_decode_tokens`, and prefill
        chunks (tokens, context before the chunk)."""

    def decode_segment(self, n_decode: int, kv_decode_tokens: int) -> tuple[float, float, float]:
        """(base_s, slope_s_per_token, kv_end): a pure decode iteration costs base + slope * kv for kv in
        [kv_decode_tokens, kv_end)."""


class PerformanceLike(Protocol):
    """hw_profiles.performance.PerformanceModel."""

    @property
    def replica(self) -> Any:
        """Callable (model, devices, tp, pp, topology) -> Costs; raises InfeasibleError."""
