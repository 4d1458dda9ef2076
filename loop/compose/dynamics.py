"""The dynamics that evolution has to prove itself on: what changes, on which cluster, at what load.

Loads are such that a window keeps its cluster busy for minutes: where nothing queues, there is nothing to win.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from execution.workload import scenario, windows
from hw_profiles import load_cluster
from loop.contracts import Window, Workload

LARGE, MEDIUM = "llama-3.1-70b", "qwen3-32b"


@dataclass(frozen=True, slots=True)
class Dynamic:
    """One scenario on one cluster. Times in seconds of the trace."""

    name: str
    title: str
    cluster: str
    scenario: str
    models: tuple[str, ...] = (LARGE,)
    duration_s: float = 2000.0
    window_s: float = 250.0
    rate_scale: float = 0.6
    """Multiplies the rate of the trace."""
    nodes: tuple[str, ...] = ()
    """Nodes that fail or grow hot."""
    spot: str = ""
    """Prefix of the nodes that are reclaimed and return; empty: none."""

    def build(self, data_dir: Path | None, seed: int) -> tuple[Workload, tuple[Window, ...]]:
        """The requests and events, in windows. Trace files are used where `data_dir` has them.

        Raises:
            WorkloadError: a malformed trace.
            ProfileError: an unknown cluster.
        """
        topology = load_cluster(self.cluster)
        spot = tuple(n for n in topology.nodes if self.spot and n.startswith(self.spot))
        workload, events = scenario(
            self.scenario,
            data_dir,
            model=self.models[0],
            other_model=self.models[1] if len(self.models) > 1 else None,
            seed=seed,
            duration_s=self.duration_s,
            rate_scale=self.rate_scale,
            nodes=self.nodes,
            spot=spot,
        )
        return workload, tuple(windows(workload, self.window_s, events))


H100, MIXED, A100 = "homogeneous-h100-32", "mixed-64", "elastic-a100"
BOTH = (LARGE, MEDIUM)

DYNAMICS: tuple[Dynamic, ...] = (
    Dynamic(
        "diurnal-burst",
        "32 H100: one model has ServeGen's day, the other Azure's evening with a burst",
        H100,
        "diurnal-burst",
        BOTH,
        rate_scale=0.4,
    ),
    Dynamic(
        "flash-crowd",
        "32 H100: a crowd comes for the smaller of two models",
        H100,
        "flash-crowd",
        BOTH,
        rate_scale=0.45,
    ),
    Dynamic(
        "long-context-wave",
        "32 H100: very long prompts among Mooncake's conversations",
        H100,
        "long-context-wave",
    ),
    Dynamic("reasoning-wave", "32 H100: answers of thousands of tokens among chats", H100, "reasoning-wave"),
    Dynamic(
        "mix-shift",
        "64 mixed GPUs: Azure's short conversations become Mooncake's long ones",
        MIXED,
        "mix-shift",
    ),
    Dynamic("model-mix", "64 mixed GPUs: two models change places", MIXED, "model-mix", BOTH),
    Dynamic(
        "node-loss",
        "64 mixed GPUs: an H100 and an A100 node fail and come back",
        MIXED,
        "node-loss",
        nodes=("h100-0", "a100-0"),
    ),
    Dynamic(
        "thermal-throttling",
        "64 mixed GPUs: a heat wave slows three of the fast nodes",
        MIXED,
        "thermal-throttling",
        nodes=("h100-0", "h100-1", "a100-0"),
    ),
    Dynamic(
        "spot-elastic",
        "elastic A100 pool: spot nodes join and are reclaimed, load and mix of two models swell and ebb",
        A100,
        "elastic",
        BOTH,
        spot="spot",
    ),
)
