"""How policies come to serve: shadow, canary, promotion, watch, rollback, and the operator's commands."""

from strategy.live.config import CanaryKind, LiveConfig
from strategy.live.live import Live
from strategy.live.rollout import Evidence, Rollout, Transition, advance
from strategy.live.sequential import BettingTest
from strategy.live.store import FILE_NAME, LiveStore, LiveStoreError

__all__ = [
    "FILE_NAME",
    "BettingTest",
    "CanaryKind",
    "Evidence",
    "Live",
    "LiveConfig",
    "LiveStore",
    "LiveStoreError",
    "Rollout",
    "Transition",
    "advance",
]
