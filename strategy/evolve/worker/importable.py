"""What a policy may import: the static check asks, and the worker sees to it."""

IMPORTABLE = (
    "strategy.policy_api",
    "__future__",
    "bisect",
    "collections",
    "collections.abc",
    "heapq",
    "itertools",
    "math",
    "random",
    "statistics",
)
"""Modules, by their full names."""
