"""Policies as values."""

from __future__ import annotations

from loop.contracts import PolicySource
from strategy.policy import digest_of


def make_source(
    source: str,
    *,
    name: str = "",
    parents: tuple[str, ...] = (),
    operator: str = "seed",
    note: str = "",
) -> PolicySource:
    """A policy value with its digest; it is named after that unless it has a name."""
    digest = digest_of(source)
    return PolicySource(name or f"evolved-{digest[:6]}", source, digest, parents, operator, note)
