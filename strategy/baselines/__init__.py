"""What users would pick instead: the policies that evolution starts from and is measured against."""

from strategy.baselines.registry import (
    BASELINES,
    BaselineError,
    list_baselines,
    load_baseline,
    tuned_baseline,
)

__all__ = ["BASELINES", "BaselineError", "list_baselines", "load_baseline", "tuned_baseline"]
