"""Plans as YAML files: written by `physical plan`, read by `physical apply` and by people."""

from __future__ import annotations

import math
from typing import Any

from physical.placement.planner import ClusterPlan, ModelPlan, Replica

VERSION = 1


def as_dict(plan: ClusterPlan) -> dict[str, Any]:
    """Plain values: what `--json` prints and the YAML file holds."""
    return {
        "version": VERSION,
        "cluster": plan.cluster,
        "took_s": round(plan.took_s, 3),
        "models": [_model(model) for model in plan.models],
        "idle_devices": list(plan.idle),
        "moved_together": plan.atoms,
    }


def as_yaml(plan: ClusterPlan) -> str:
    """The file."""
    import yaml  # noqa: PLC0415

    head = (
        f"# Placement on {plan.cluster}. Layers count from 0; tokens are those of prompts and answers together.\n"
        "# `loop serve --plan` deploys it as replicas; `physical apply` wants a `launch` (docs/placement.md).\n"
    )
    return head + yaml.safe_dump(as_dict(plan), sort_keys=False, width=110)


def _model(plan: ModelPlan) -> dict[str, Any]:
    return {
        "model": plan.model,
        "layers": plan.layers,
        "tokens_per_s": round(plan.tokens_per_s, 3),
        "requests_per_s": round(plan.requests_per_s, 4),
        "wanted_requests_per_s": plan.wanted_requests_per_s,
        "bound_tokens_per_s": round(plan.bound_tokens_per_s, 3),
        "method": plan.method,
        "explanation": list(plan.explanation),
        "gains_tokens_per_s": {name: round(gain, 3) for name, gain in plan.gains.items()},
        "replicas": [_replica(replica) for replica in plan.replicas],
    }


def _replica(replica: Replica) -> dict[str, Any]:
    return {
        "weight": round(replica.weight, 6),
        "tokens_per_s": round(replica.tokens_per_s, 3),
        "token_ms": round(1e3 * replica.token_s, 3),
        "stages": [
            {
                "devices": list(stage.devices),
                "kind": stage.kind,
                "tp": stage.tp,
                "first_layer": stage.first_layer,
                "layers": stage.layers,
                "tokens_per_s": round(stage.tokens_per_s, 3),
                "rate_tokens_per_s": round(stage.rate_tokens_per_s, 3),
            }
            for stage in replica.stages
        ],
        "flow": [
            {
                "from": "gateway" if hop.source is None else hop.source,
                "to": "gateway" if hop.target is None else hop.target,
                "tokens_per_s": round(hop.tokens_per_s, 3),
                "weight": round(hop.share, 6),
                "limit_tokens_per_s": round(hop.limit_tokens_per_s, 3)
                if math.isfinite(hop.limit_tokens_per_s)
                else None,
            }
            for hop in replica.hops
        ],
    }
