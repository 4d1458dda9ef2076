"""Tokens/s of a group of devices that holds k layers of a model, from the performance model.

Steady state of a pipeline that is never short of requests: what memory the layers leave free holds the KV cache of
so many sequences; a stage of k of L layers works on a k/L-th of them at a time while the others are in other stages.
Prompts and decoding take turns on the same devices. Tokens are those of prompts and answers alike, since both pass
every stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hw_profiles import Device, ModelSpec, Topology
from hw_profiles.performance import InfeasibleError, PerformanceModel, ReplicaPerformance
from hw_profiles.performance.capacity import kv_bytes_per_token_per_device

_EXACT_LAYERS = 12
"""Up to here every number of layers is looked at, beyond it every k / 12-th, with lines between."""
_NO_VOCABULARY = 16
"""Entries left of the vocabulary where a stage has neither embedding nor head."""


@dataclass(frozen=True)
class Traffic:
    """What is asked of a model."""

    input_tokens: int = 1024
    output_tokens: int = 256
    requests_per_s: float | None = None
    """None: as much as can be had."""

    @property
    def tokens(self) -> int:
        """Of one request."""
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True)
class StageRates:
    """A group of devices with 1, 2, 3... layers."""

    tokens_per_s: tuple[float, ...]
    last_tokens_per_s: tuple[float, ...]
    """With the output head."""
    step_s: tuple[float, ...]
    """One decode step of the stage, at the batch that it then has."""


def stage_rates(
    model: ModelSpec,
    devices: Sequence[Device],
    performance: PerformanceModel,
    topology: Topology,
    traffic: Traffic,
    *,
    max_num_seqs: int = 256,
    least_layers: int = 1,
) -> StageRates | None:
    """Rates of `devices` as one tensor-parallel group; None where not even one layer fits or it cannot be split.

    Runs of fewer than `least_layers` get rate 0, so that nobody plans with them.
    """
    known: dict[int, tuple[float, float, float]] = {}
    layers = 1
    while layers <= model.layers:
        found = _at(
            model,
            layers,
            devices,
            performance,
            topology=topology,
            traffic=traffic,
            max_num_seqs=max_num_seqs,
        )
        if found is None:
            if layers - 1 in known or layers == 1:
                break
            layers = max(known) + 1  # the most that fits lies between two knots
            continue
        known[layers] = found
        step = max(1, layers // _EXACT_LAYERS)
        layers = min(layers + step, model.layers) if layers < model.layers else model.layers + 1
    if not known:
        return None
    seconds = [_between(known, k, i) for i in range(3) for k in range(1, max(known) + 1)]
    size = max(known)
    enough = [k >= least_layers for k in range(1, size + 1)]
    if not any(enough):
        return None
    return StageRates(
        tuple(1.0 / s if ok else 0.0 for s, ok in zip(seconds[:size], enough, strict=True)),
        tuple(1.0 / s if ok else 0.0 for s, ok in zip(seconds[size : 2 * size], enough, strict=True)),
        tuple(seconds[2 * size :]),
    )


def _between(known: Mapping[int, tuple[float, float, float]], layers: int, which: int) -> float:
    """A figure at so many layers, linear between those that were looked at."""
    if layers in known:
        return known[layers][which]
    below = max(k for k in known if k < layers)
    above = min(k for k in known if k > layers)
    share = (layers - below) / (above - below)
    return (1.0 - share) * known[below][which] + share * known[above][which]


def _at(
    model: ModelSpec,
    layers: int,
    devices: Sequence[Device],
    performance: PerformanceModel,
    *,
    topology: Topology,
    traffic: Traffic,
    max_num_seqs: int,
) -> tuple[float, float, float] | None:
    """(seconds a token, the same with the head, seconds a decode step) of so many layers; None: they do not fit."""
    try:
        inner, ending = (
            performance.replica(_part(model, layers, words), devices, len(devices), 1, topology)
            for words in (_NO_VOCABULARY, model.vocab_size)
        )
    except InfeasibleError:
        return None
    sequences = _sequences(
        model, layers, inner, ending, tp=len(devices), traffic=traffic, max_num_seqs=max_num_seqs
    )
    if sequences < 1:
        return None
    share = max(1, sequences * layers // model.layers)
    return (
        1.0 / _tokens_per_s(inner, share, traffic),
        1.0 / _tokens_per_s(ending, share, traffic),
        inner.decode_step_s(share, _context(share, traffic)),
    )


def _part(model: ModelSpec, layers: int, vocabulary: int) -> ModelSpec:
    """So many layers of a model and one vocabulary matrix (embedding or head) of so many entries."""
    update = {
        "name": f"{model.name}/{layers}/{vocabulary}",
        "layers": layers,
        "vocab_size": vocabulary,
        "tie_embeddings": True,
        "published_parameters": None,
    }
    return model.model_copy(update=update)


def _sequences(
    model: ModelSpec,
    layers: int,
    inner: ReplicaPerformance,
    ending: ReplicaPerformance,
    *,
    tp: int,
    traffic: Traffic,
    max_num_seqs: int,
) -> int:
    """How many the KV cache holds. Each stage keeps room for one vocabulary matrix, a whole model for both."""
    capacity = ending.kv_capacity_tokens
    if layers == model.layers and not model.tie_embeddings:
        matrix_bytes = 2.0 * model.vocab_size * model.hidden_size / tp
        per_token = kv_bytes_per_token_per_device(_part(model, layers, _NO_VOCABULARY), tp, 1)
        capacity -= int(matrix_bytes / per_token)
    capacity = min(capacity, inner.kv_capacity_tokens)
    return min(max_num_seqs * max(1, model.layers // layers), capacity // traffic.tokens)


def _tokens_per_s(replica: ReplicaPerformance, share: int, traffic: Traffic) -> float:
    step_s = replica.decode_step_s(share, _context(share, traffic))
    request_s = traffic.input_tokens / replica.prefill_tokens_per_s + traffic.output_tokens * step_s / share
    return traffic.tokens / request_s


def _context(share: int, traffic: Traffic) -> int:
    """Tokens in the cache of `share` sequences, each on average half through its answer."""
    return round(share * (traffic.input_tokens + traffic.output_tokens / 2))
