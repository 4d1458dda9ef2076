"""Novelty: whether a candidate, or what it does, was there before."""

from __future__ import annotations

from loop.contracts import EvaluationTask, PolicySource, Score
from strategy.evolve.archive import Archive
from strategy.evolve.static import normalised_digest


class Novelty:
    """Remembers who was first: by normalised syntax tree for ever, by behaviour on the tasks of a step."""

    def __init__(self, archive: Archive, world_key: str) -> None:
        self._archive = archive
        self._world_key = world_key
        self._identities = archive.identities()
        self._done: dict[EvaluationTask, dict[str, str]] = {}

    def __contains__(self, identity: str) -> bool:
        return identity in self._identities

    def begin(self, tasks: frozenset[EvaluationTask]) -> None:
        """A step begins: what was done on other tasks says nothing."""
        self._done = {task: done for task, done in self._done.items() if task in tasks}

    def forget(self) -> None:
        """The world has changed: what was done in it says nothing."""
        self._done.clear()

    def claim(self, policy: PolicySource, identity: str) -> str:
        """Digest of the first policy with this syntax tree, which may be this one."""
        return self._identities.setdefault(identity, policy.digest)

    def twin(self, policy: PolicySource, task: EvaluationTask, score: Score) -> str:
        """Digest of the first policy that did the same on this task; empty: this one."""
        if not score.fingerprint:
            return ""
        if task not in self._done:
            known = self._archive.fingerprints(task, self._world_key) if self._world_key else {}
            self._done[task] = known
        first = self._done[task].setdefault(score.fingerprint, policy.digest)
        return "" if first == policy.digest else first


def identity_of(source: str) -> str:
    """Normalised digest; of what does not parse, a digest that nothing else has."""
    try:
        return normalised_digest(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "unparsed:" + source[:200]
