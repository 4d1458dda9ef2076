"""The outside of the sandbox: policies and scoring jobs in locked worker processes (docs/adr/0004-sandbox.md)."""

from strategy.evolve.sandbox.limits import SandboxLimits
from strategy.evolve.sandbox.policy import PolicyRaisedError, SandboxedPolicy
from strategy.evolve.sandbox.pool import PoolJob, WorkerPool
from strategy.evolve.sandbox.process import WorkerProcess, WorkerSupply
from strategy.evolve.sandbox.worker import SandboxedWorker

__all__ = [
    "PolicyRaisedError",
    "PoolJob",
    "SandboxLimits",
    "SandboxedPolicy",
    "SandboxedWorker",
    "WorkerPool",
    "WorkerProcess",
    "WorkerSupply",
]
