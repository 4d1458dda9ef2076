"""How carefully a policy is brought into service."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class CanaryKind(StrEnum):
    """What a canary gets."""

    NONE = "none"
    TRAFFIC = "traffic"  # routes and orders a share of the requests; the champion plans
    WINDOWS = "windows"  # decides everything in a share of the windows


@dataclass(frozen=True, slots=True)
class LiveConfig:
    """The way from a proposal to a kept policy. The defaults are for real serving.

    Raises:
        ValueError: names the field and its range.
    """

    shadow_windows: int = 2
    """Windows in which the challenger decides unseen; 0: none."""
    shadow_share: float = 0.05
    """Share of the requests that it is asked about as well, by a hash of their id."""
    shadow_requests: int = 256
    """At most so many requests a window: the shadow's work is bounded."""
    shadow_late_s: float | None = 0.05
    """A routing answer in shadow that takes longer counts as late; None: only the sandbox's deadline counts."""
    canary: CanaryKind = CanaryKind.TRAFFIC
    """How the challenger is tried on real work."""
    canary_share: float = 0.1
    """Share of the requests (by a hash of their id), or of the windows of the canary, in (0, 1]."""
    canary_min_windows: int = 2
    """Not promoted before so many windows of canary."""
    canary_max_windows: int = 20
    """Then it is decided: promoted when the mean is no loss and nothing spoke against it, else refused."""
    canary_faults: int = 0
    """Answers that the champion had to give instead, in one canary; more refuse the challenger."""
    confidence: float = 0.95
    """Of the sequential test, on each side, however often it is looked at."""
    hard_regret: float = 0.5
    """A canary window that takes longer than the champion's would have by more than this share ends it."""
    regret: float = 0.02
    """A champion is taken back when a predecessor would have saved more than this share."""
    watch_windows: int = 3
    """So many of its latest windows are compared; two at least before anything is said; 0: no comparison."""
    watch_for: int | None = 10
    """Windows after which a champion is kept and no more compared; None: compared for as long as it serves."""
    watch_faults: int = 0
    """Faults of one champion while it serves; more take it back."""
    cooldown_windows: int = 10
    """So long a policy that was refused or rolled back may not be proposed again."""
    fault_cooldown_windows: int | None = None
    """The same after faults; None: never again in this run."""
    error_budget: float = 3.0
    """Rollbacks that evolution may cause; when spent, it is frozen: nothing new is handed over."""
    regret_cost: float = 0.25
    """What a rollback without faults spends of it (one with faults: 1)."""
    budget_recovery_windows: int | None = 50
    """Windows that give back 1 of the budget; None: only `revive` does."""

    def __post_init__(self) -> None:
        shares = {"canary_share": self.canary_share, "shadow_share": self.shadow_share}
        for name, value in shares.items():
            if not 0.0 < value <= 1.0:
                raise ValueError(f"LiveConfig.{name} must lie in (0, 1], not {value}")
        if not 0.5 <= self.confidence < 1.0:
            raise ValueError(f"LiveConfig.confidence must lie in [0.5, 1), not {self.confidence}")
        if not 1 <= self.canary_min_windows <= self.canary_max_windows:
            raise ValueError(
                "LiveConfig: 1 <= canary_min_windows <= canary_max_windows must hold, not "
                f"{self.canary_min_windows} and {self.canary_max_windows}"
            )
        counts = ("shadow_windows", "shadow_requests", "canary_faults", "watch_windows", "watch_faults")
        for name in (*counts, "cooldown_windows", "regret", "hard_regret", "error_budget", "regret_cost"):
            if getattr(self, name) < 0:
                raise ValueError(f"LiveConfig.{name} must not be negative, is {getattr(self, name)}")

    @classmethod
    def immediate(cls) -> LiveConfig:
        """A proven policy takes over at once, and is watched for as long as it serves. For replays in which
        every window counts and the proof in the twin has to do."""
        return cls(
            shadow_windows=0,
            shadow_late_s=None,
            canary=CanaryKind.NONE,
            watch_for=None,
            cooldown_windows=0,
            regret_cost=0.0,
        )

    @classmethod
    def batch(cls) -> LiveConfig:
        """For batch replay: one window in shadow, then whole windows that are compared with what the champion
        would have made of them."""
        return cls(
            shadow_windows=1,
            shadow_late_s=None,
            canary=CanaryKind.WINDOWS,
            canary_share=1.0,
            canary_max_windows=6,
            confidence=0.9,
        )
