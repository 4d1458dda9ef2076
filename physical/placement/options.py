"""What one replica would do, for every (model, device kind, TP, PP) that the topology can host."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import pairwise

import numpy as np
from scipy.optimize import nnls

from hw_profiles import Device, ModelSpec, Topology
from hw_profiles.performance import InfeasibleError, PerformanceModel, ReplicaPerformance
from loop.contracts import DeploymentOption, DeviceView

CONTEXTS = (128, 512, 1024, 2048, 4096, 8192, 16384, 32768)
"""Tokens of context a sequence, at which decoding is sampled."""


def deployment_options(
    topology: Topology,
    models: Sequence[ModelSpec],
    performance: PerformanceModel,
    *,
    tps: Sequence[int] = (1, 2, 4, 8),
    pps: Sequence[int] = (1, 2),
    max_num_seqs: int = 256,
) -> tuple[DeploymentOption, ...]:
    """All replicas that fit memory and some node, in the order of models, kinds, tp, pp.

    The devices of one stage share a node; stages may stand on several nodes of the same kind of device.
    Where nodes of a kind differ in their links, the option describes the slowest placement, so that no
    placement does worse. The decode line is fitted up to `max_num_seqs` sequences.
    """
    found = []
    for model in models:
        for per_node in _by_kind(topology).values():
            for tp in tps:
                for pp in pps:
                    option = _option(
                        topology, model, per_node, performance, tp=tp, pp=pp, max_num_seqs=max_num_seqs
                    )
                    if option is not None:
                        found.append(option)
    return tuple(found)


def device_views(
    topology: Topology,
    *,
    unavailable: Set[str] = frozenset(),
    speeds: Mapping[str, float] | None = None,
    leaving_in_s: Mapping[str, float] | None = None,
) -> tuple[DeviceView, ...]:
    """The devices of a topology in order, nominal unless told otherwise, by device id.

    Raises:
        ValueError: an id that is no device of the topology.
    """
    speeds, leaving_in_s = speeds or {}, leaving_in_s or {}
    for name in (*unavailable, *speeds, *leaving_in_s):
        if name not in topology.devices:
            raise ValueError(f"cluster '{topology.name}' has no device '{name}'")
    return tuple(
        DeviceView(
            id=device.id,
            kind=device.kind,
            node=device.node,
            available=device.id not in unavailable,
            speed=speeds.get(device.id, 1.0),
            leaving_in_s=leaving_in_s.get(device.id),
            memory_bytes=device.profile.memory_bytes,
            usd_per_hour=device.usd_per_hour,
            spot=device.spot,
        )
        for device in topology.devices.values()
    )


def requests_per_s(
    option: DeploymentOption, input_tokens: int, output_tokens: int, *, max_num_seqs: int = 256
) -> float:
    """Estimated steady throughput of one replica that is never short of requests of this length.

    As many sequences decode as the KV cache and `max_num_seqs` allow, each on average half through its
    output; prefill and decode take turns on the same devices. 0 where a single request does not fit.
    """
    length = input_tokens + output_tokens
    if length > option.kv_capacity_tokens:
        return 0.0
    n = min(max_num_seqs, option.kv_capacity_tokens // length)
    context = input_tokens + output_tokens / 2
    step_s = option.decode_base_s + n * option.decode_per_seq_s + n * context * option.decode_per_kv_token_s
    return 1.0 / (input_tokens / option.prefill_tokens_per_s + output_tokens * step_s / n)


def _by_kind(topology: Topology) -> dict[str, list[list[Device]]]:
    """Device kind -> for each node that has some, its devices of that kind. FPGAs serve no LLM."""
    kinds: dict[str, list[list[Device]]] = {}
    for ids in topology.nodes.values():
        here: dict[str, list[Device]] = {}
        for device in (topology.devices[i] for i in ids):
            if device.profile.class_ != "fpga":
                here.setdefault(device.kind, []).append(device)
        for kind, devices in here.items():
            kinds.setdefault(kind, []).append(devices)
    return kinds


def _placements(
    topology: Topology, per_node: Sequence[Sequence[Device]], tp: int, pp: int
) -> Iterator[tuple[Device, ...]]:
    """One group of tp * pp devices for each way to place it that differs in links.

    Inside single nodes where any is large enough, else stages over as few nodes as it takes.
    """
    whole = [tuple(devices[: tp * pp]) for devices in per_node if len(devices) >= tp * pp]
    if whole:
        yield from whole
        return
    stages = [
        devices[i * tp : (i + 1) * tp]
        for devices in sorted(per_node, key=len, reverse=True)
        for i in range(len(devices) // tp)
    ]
    if len(stages) < pp:
        return
    chosen = tuple(device for stage in stages[:pp] for device in stage)
    reachable = all(
        topology.bandwidth_bytes_per_s(chosen[i * tp].id, chosen[j * tp].id) > 0
        for i, j in pairwise(range(pp))
    )
    if reachable:
        yield chosen


def _option(
    topology: Topology,
    model: ModelSpec,
    per_node: Sequence[Sequence[Device]],
    performance: PerformanceModel,
    *,
    tp: int,
    pp: int,
    max_num_seqs: int,
) -> DeploymentOption | None:
    """The option on its slowest placement; None where it fits no devices."""
    candidates = []
    seen: set[tuple[float, float]] = set()
    for devices in _placements(topology, per_node, tp, pp):
        links = (_stage_bandwidth(topology, devices, tp), _cross_bandwidth(topology, devices, tp))
        if links in seen:
            continue
        seen.add(links)
        try:
            replica = performance.replica(model, devices, tp, pp, topology)
        except InfeasibleError:
            return None
        candidates.append((replica, devices, links[0]))
    if not candidates:
        return None
    replica, devices, bandwidth = min(candidates, key=lambda c: (c[0].prefill_tokens_per_s, c[2]))
    every = [device for node in per_node for device in node]
    base_s, per_seq_s, per_kv_token_s = decode_line(replica, model.max_context_tokens, max_num_seqs)
    return DeploymentOption(
        model=model.name,
        kind=devices[0].kind,
        tp=tp,
        pp=pp,
        kv_capacity_tokens=replica.kv_capacity_tokens,
        start_s=replica.start_s,
        prefill_tokens_per_s=replica.prefill_tokens_per_s,
        decode_base_s=base_s,
        decode_per_seq_s=per_seq_s,
        decode_per_kv_token_s=per_kv_token_s,
        tp_link_bytes_per_s=bandwidth,
        watts=replica.busy_watts,
        # The mean over the pool: spot and reserved devices of a kind may cost differently.
        usd_per_hour=tp * pp * sum(device.usd_per_hour for device in every) / len(every),
    )


def _stage_bandwidth(topology: Topology, devices: Sequence[Device], tp: int) -> float:
    """The narrowest link inside any stage; for stages of one device, its own memory's bandwidth (bytes that
    stay where they are), so that the figure stays finite."""
    if tp == 1:
        return devices[0].profile.memory_bytes_per_s
    stages = [[d.id for d in devices[i : i + tp]] for i in range(0, len(devices), tp)]
    return min(topology.group_bandwidth_bytes_per_s(stage) for stage in stages)


def _cross_bandwidth(topology: Topology, devices: Sequence[Device], tp: int) -> float:
    """The narrowest link from one stage to the next; infinite with one stage."""
    heads = [device.id for device in devices[::tp]]
    return min((topology.bandwidth_bytes_per_s(a, b) for a, b in pairwise(heads)), default=float("inf"))


def decode_line(
    replica: ReplicaPerformance, max_context_tokens: int, max_num_seqs: int
) -> tuple[float, float, float]:
    """(base_s, per_seq_s, per_kv_token_s), none negative: least squares of the relative error of
    `decode_step_s` over batches 1, 2, 4... `max_num_seqs` of contexts that fit the KV cache."""
    batches = sorted({*(2**i for i in range(max_num_seqs.bit_length())), max_num_seqs})
    contexts = [c for c in CONTEXTS if c <= max_context_tokens] or [max_context_tokens]
    grid = [
        (n, n * context)
        for n in batches
        for context in contexts
        if n <= max_num_seqs and n * context <= replica.kv_capacity_tokens
    ] or [(1, max(1, replica.kv_capacity_tokens // 2))]
    measured = np.array([replica.decode_step_s(n, kv) for n, kv in grid])
    rows = np.array([(1.0, n, kv) for n, kv in grid]) / measured[:, None]
    scale = rows.max(axis=0)
    solution, _ = nnls(rows / scale, np.ones(len(grid)))
    base_s, per_seq_s, per_kv_token_s = solution / scale
    return float(base_s), float(per_seq_s), float(per_kv_token_s)
