"""How eagerly execution evolves."""

from __future__ import annotations

from dataclasses import dataclass, field

from execution.live.module_rounds import ModuleSettings


@dataclass(frozen=True, slots=True)
class EvolutionSettings:
    """How eagerly it works."""

    observe_steps: int = 100
    """Steps that are looked at before anything is compiled."""
    place_pairs: int = 24
    """Pairs of blocks that a trial in place wants."""
    place_limit_s: float = 30.0
    """A trial in place that has not seen enough steps by then leaves it to what was measured beside."""
    min_gain_in_place: float = 1.02
    recorded_steps: int = 2
    """Steps copied for proofs."""
    watch_every_s: float = 1.0
    decode: bool = True
    """Whether the decode step as a whole is evolved."""
    modules: ModuleSettings = field(default_factory=ModuleSettings)
    """Of what is tried after it: single modules."""
    cpu_s_per_minute: int = 60
    search: bool = True
    """False: nothing is compiled; what the cache holds is put in force."""
