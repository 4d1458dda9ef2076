"""From samples to what a policy sees: window statistics, demand, pain and pleasure."""

from loop.perception.observe import Perception
from loop.perception.stats import LogHistogram, StatsCollector

__all__ = ["LogHistogram", "Perception", "StatsCollector"]
