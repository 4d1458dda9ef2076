"""The lineage of policies: who was made from whom, how well each did, and what became of it.

`read_lineage` takes it out of an archive; `loop.runner.lineage_picture` draws it, `loop.runner.lineage_page`
makes a page of it.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from loop.contracts import EvaluationTask, PolicySource
from strategy.evolve.archive import Archive, ArchivedEvaluation

_STAGES = ("full", "smoke")
"""Scores of these stages are shown, the first that there is; other stages are seen by few."""


@dataclass(frozen=True, slots=True)
class LineageNode:
    """One policy."""

    digest: str
    name: str
    parents: tuple[str, ...]
    operator: str
    note: str
    ratio: float | None
    """Objective against the reference's on the same windows of the same world; below 1 is better; None: it
    has no score."""
    stage: str
    """That the ratio comes from; empty: none."""
    death: str
    """Why it went no further; empty: it lives, or nobody knows."""
    detail: str
    promoted: bool
    diff: tuple[str, ...] = ()
    """To its first parent."""


@dataclass(frozen=True, slots=True)
class Lineage:
    """Nodes, the oldest first: each stands behind its parents."""

    nodes: tuple[LineageNode, ...]
    champion: str
    """Digest of the policy that the picture leads to; empty: none was promoted."""
    reference: str
    """Name of the policy that ratios are to."""

    @property
    def path(self) -> frozenset[str]:
        """The champion and its first parents, back to where it began."""
        known = {node.digest: node for node in self.nodes}
        found: list[str] = []
        digest = self.champion
        while digest in known and digest not in found:
            found.append(digest)
            digest = known[digest].parents[0] if known[digest].parents else ""
        return frozenset(found)

    def deaths(self) -> dict[str, int]:
        """How many died of what, the most frequent first."""
        counts: dict[str, int] = {}
        for node in self.nodes:
            if node.death:
                counts[node.death] = counts.get(node.death, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def read_lineage(
    archive: Archive, digest: str = "", *, first: str = "", champion: str = "", max_diff_lines: int = 160
) -> Lineage:
    """The lineage of one candidate: itself, all its ancestors, all that came from it and those ones'
    ancestors; of all candidates when `digest` is empty.

    `first`: digest of the policy that ratios are to; empty: the oldest one with a score. `champion`: what the
    bold path leads to; empty: `digest`, or the policy that was promoted last.
    """
    policies = {p.digest: p for p in archive}
    chosen = _related(policies, digest) if digest else set(policies)
    scores = {d: archive.evaluations(d) for d in policies if d in chosen or d == first}
    base, reference = _reference(policies, scores, first)
    promoted, ends = _ends(archive)
    nodes = []
    for policy in _parents_first(policies, chosen):
        ratio, stage = _ratio(scores.get(policy.digest, []), base)
        death, detail = ends.get(policy.digest, ("", ""))
        nodes.append(
            LineageNode(
                digest=policy.digest,
                name=policy.name,
                parents=policy.parents,
                operator=policy.operator,
                note=policy.note,
                ratio=ratio,
                stage=stage,
                death=death,
                detail=detail,
                promoted=policy.digest in promoted,
                diff=_diff(policies, policy)[:max_diff_lines],
            )
        )
    last = next((d for d in reversed(promoted) if d in chosen), "")
    return Lineage(tuple(nodes), champion or digest or last, reference)


def _related(policies: Mapping[str, PolicySource], digest: str) -> set[str]:
    """The digest, its ancestors, its descendants, and the ancestors of these."""
    below = {digest}
    for policy in _parents_first(policies, policies.keys()):
        if below & set(policy.parents):
            below.add(policy.digest)
    found: set[str] = set()
    todo = list(below)
    while todo:
        one = todo.pop()
        if one in policies and one not in found:
            found.add(one)
            todo += policies[one].parents
    return found


def _parents_first(policies: Mapping[str, PolicySource], chosen: Collection[str]) -> list[PolicySource]:
    """In the order of the archive, except that nobody stands before its parents."""
    ordered: list[PolicySource] = []
    placed: set[str] = set()
    for digest in policies:
        todo = [digest]
        under_way: set[str] = set()
        while todo:
            one = todo[-1]
            waiting = [p for p in policies[one].parents if p in policies and p not in placed | under_way]
            under_way.add(one)
            if waiting and one not in placed:
                todo += waiting
                continue
            todo.pop()
            if one not in placed:
                placed.add(one)
                ordered.append(policies[one])
    return [p for p in ordered if p.digest in chosen]


def _reference(
    policies: Mapping[str, PolicySource],
    scores: Mapping[str, Sequence[ArchivedEvaluation]],
    first: str,
) -> tuple[dict[EvaluationTask, float], str]:
    """What each task's objectives are divided by, and the name of the policy that gave most of them."""
    base: dict[EvaluationTask, float] = {}
    givers: list[str] = []
    for digest in [first, *policies] if first in policies else list(policies):
        for row in scores.get(digest, []):
            score = row.evaluation.score
            if score is not None and score.objective > 0 and row.task not in base:
                base[row.task] = score.objective
                givers.append(digest)
    most = max(dict.fromkeys(givers), key=givers.count, default="")
    return base, policies[most].name if most else ""


def _ratio(
    rows: Iterable[ArchivedEvaluation], base: Mapping[EvaluationTask, float]
) -> tuple[float | None, str]:
    """The newest comparable score of the fullest stage."""
    newest: dict[str, float] = {}
    for row in rows:
        score = row.evaluation.score
        if score is not None and row.evaluation.death is None and row.task in base:
            newest[row.stage] = score.objective / base[row.task]
    return next(((newest[stage], stage) for stage in _STAGES if stage in newest), (None, ""))


def _ends(archive: Archive) -> tuple[list[str], dict[str, tuple[str, str]]]:
    """(promoted digests in order, digest -> (death, detail) of those whose last outcome is an end)."""
    promoted: list[str] = []
    ends: dict[str, tuple[str, str]] = {}
    for outcome in archive.outcomes():
        if outcome.death is None:
            ends.pop(outcome.digest, None)
            if outcome.detail.startswith("promoted"):
                promoted.append(outcome.digest)
        else:
            ends[outcome.digest] = (str(outcome.death), outcome.detail)
    return promoted, ends


def _diff(policies: Mapping[str, PolicySource], policy: PolicySource) -> tuple[str, ...]:
    parent = next((policies[p] for p in policy.parents if p in policies), None)
    if parent is None:
        return ()
    return tuple(
        difflib.unified_diff(
            parent.source.splitlines(), policy.source.splitlines(), parent.name, policy.name, lineterm="", n=2
        )
    )
