"""Replan when devices throttle or straggle, or have recovered.

The slowest device of a group sets its pace, and a window is done with its last request: a layout that was
right at full speed is wrong when a device slows down.
"""

from strategy.policy_api import Memo, Observation, keep, usable_devices

SPEED_CHANGE = 0.15  # 0.02 to 0.6: change of speed that makes the layout worth a second look


def should_replan(obs: Observation, memo: Memo) -> bool:
    """When the total or the least speed of the devices moved, or a replica was lost."""
    kept = keep(obs)
    speeds = [device.speed for device in usable_devices(obs)]
    total, least = sum(speeds), min(speeds, default=0.0)
    moved = not kept or len(kept) < len(obs.plan.replicas)
    moved = moved or abs(total - memo.get("total_speed", total)) >= SPEED_CHANGE
    moved = moved or abs(least - memo.get("least_speed", least)) >= SPEED_CHANGE
    if moved or "total_speed" not in memo:
        memo["total_speed"], memo["least_speed"] = total, least
    return moved
