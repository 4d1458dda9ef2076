"""The policies that are loaded just now: loaded when needed, ended when their successor has taken over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, runtime_checkable

from loop.contracts import Policy, PolicySource

Load = Callable[[PolicySource], Policy]
"""Raises PolicyFault where a policy cannot be loaded."""


@runtime_checkable
class Closable(Protocol):
    """A policy that holds a process, or the like."""

    def close(self) -> None:
        """End it; idempotent."""


class Roster:
    """Loads policies, each once, and ends those that are needed no more."""

    def __init__(self, load: Load, trusted: Mapping[str, Policy]) -> None:
        """`trusted`: policies by digest that are there already, and never ended."""
        self._load = load
        self._trusted = trusted
        self._loaded: dict[str, Policy] = {}
        self._retired: list[Policy] = []

    def get(self, source: PolicySource) -> Policy:
        """A policy that answers. Raises PolicyFault when it cannot be loaded."""
        digest = source.digest
        if digest in self._trusted:
            return self._trusted[digest]
        if digest not in self._loaded:
            self._loaded[digest] = self._load(source)
        return self._loaded[digest]

    def keep(self, digests: Iterable[str]) -> None:
        """Only these are needed from now on; the others are handed out by the next `retired`."""
        needed = set(digests)
        for digest in [d for d in self._loaded if d not in needed]:
            self._retired.append(self._loaded.pop(digest))

    def retired(self) -> list[Policy]:
        """Those that are needed no more, for `end`; each once."""
        retired, self._retired = self._retired, []
        return retired

    def close(self) -> None:
        """End everything that was loaded."""
        self.keep(())
        end(self.retired())


def end(policies: Iterable[Policy]) -> None:
    """End what was retired: by now nobody asks it any more."""
    for policy in policies:
        if isinstance(policy, Closable):
            policy.close()
