"""The twin: a discrete-event simulator of an LLM serving cluster, on virtual time.

It implements the `DataPlane` port of loop.contracts; docs/twin.md says what it simulates and how exactly.
"""

from execution.twin.gateway import PolicyAnswerError
from execution.twin.twin import Twin
from execution.twin.world import NOMINAL, WorldParameters

__all__ = ["NOMINAL", "PolicyAnswerError", "Twin", "WorldParameters"]
