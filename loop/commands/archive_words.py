"""What an archive says of a candidate, in words and plain values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from loop.contracts import EvaluationTask, PolicySource, Score
from strategy.evolve.archive import Archive


@dataclass(frozen=True, slots=True)
class Pair:
    """Two candidates on the same task of the same set-up."""

    stage: str
    task: EvaluationTask
    first: Score
    second: Score

    @property
    def figures(self) -> dict[str, object]:
        """As plain values."""
        return {"a": asdict(self.first), "b": asdict(self.second)}


def counted(count: int, noun: str) -> str:
    """A number of things, in words."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def summary(book: Archive) -> str:
    """The archive in one line."""
    deaths = ", ".join(f"{n} {death}" for death, n in book.deaths().most_common())
    exchanges = book.exchanges()
    asked = ""
    if exchanges:
        tokens = sum(e.prompt_tokens + e.completion_tokens for e in exchanges)
        asked = f"; {len(exchanges)} questions to language models, {tokens:,} tokens"
    return (
        f"{counted(book.count(), 'candidate')} in {counted(book.generation(), 'step')}, "
        f"{counted(book.spent(), 'evaluation')}; deaths: "
        f"{deaths or 'none'}{asked}"
    )


def origin(book: Archive, policy: PolicySource) -> list[str]:
    """Where a candidate came from, and what became of it."""
    lines = [f"{policy.name} ({policy.digest}), made by {policy.operator}"]
    if policy.note:
        lines.append(f"changed: {policy.note}")
    for digest in policy.parents:
        parent = book.get(digest) if digest in book else None
        lines.append(
            f"from: {parent.name} ({digest})" if parent else f"from: {digest}, which is not archived"
        )
    children = book.children(policy.digest)
    if children:
        names = ", ".join(c.digest for c in children[:6]) + (", ..." if len(children) > 6 else "")
        lines.append(f"children: {len(children)} ({names})")
    for outcome in book.outcomes(policy.digest):
        what = str(outcome.death) if outcome.death is not None else "lived on"
        lines.append(f"step {outcome.generation}: {what}: {outcome.detail}")
    return lines


def exchanges(book: Archive, digest: str, *, whole: bool) -> list[str]:
    """The questions to language models that gave a candidate."""
    lines = []
    for e in book.exchanges(digest):
        lines.append(
            f"asked {e.model}: {e.prompt_tokens:,} tokens in, {e.completion_tokens:,} out, {e.wall_s:.1f} s, "
            f"{e.outcome}{': ' + e.detail if e.detail else ''}"
        )
        if whole:
            lines += ["--- prompt ---", e.prompt, "--- answer ---", e.answer, "---"]
        else:
            lines.append(f"answer begins: {short(e.answer, 300)} (--prompts shows all)")
    return lines


def as_json(book: Archive, policy: PolicySource) -> dict[str, object]:
    """All that is known of a candidate, as plain values."""
    return {
        **asdict(policy),
        "children": [c.digest for c in book.children(policy.digest)],
        "outcomes": [asdict(o) for o in book.outcomes(policy.digest)],
        "evaluations": [asdict(e) for e in book.evaluations(policy.digest)],
        "exchanges": [asdict(e) for e in book.exchanges(policy.digest)],
    }


def paired(book: Archive, first: str, second: str) -> list[Pair]:
    """Tasks on which both have a score: the last one of each, in the order of the cascade."""

    def scores(digest: str) -> dict[tuple[EvaluationTask, str], tuple[str, Score]]:
        return {
            (row.task, row.world_key): (row.stage, row.evaluation.score)
            for row in book.evaluations(digest)
            if row.evaluation.score is not None and row.evaluation.death is None
        }

    mine, theirs = scores(first), scores(second)
    return [
        Pair(stage, task, score, theirs[task, key][1])
        for (task, key), (stage, score) in mine.items()
        if (task, key) in theirs
    ]


def behaviour(pairs: Sequence[Pair]) -> str:
    """How two candidates behave, told by the longest task they share."""
    pair = max(pairs, key=lambda p: len(p.task.windows))
    a, b = pair.first, pair.second
    if a.fingerprint and a.fingerprint == b.fingerprint:
        return "both did exactly the same on these windows"
    wins = Counter(
        "B" if y < x else "A" if x < y else "neither"
        for x, y in zip(a.per_window, b.per_window, strict=False)
    )
    return (
        f"on the {len(pair.task.windows)} windows of the {pair.stage} stage B is better in {wins['B']}, A in "
        f"{wins['A']}; A brings about another plan in {a.replan_rate:.0%} of them and rearranges "
        f"{a.scaling:.0%} of its devices a window, B in {b.replan_rate:.0%} and {b.scaling:.0%}"
    )


def ranges(indices: Sequence[int]) -> str:
    """0,1,2,5 as `0-2, 5`."""
    parts: list[list[int]] = []
    for i in indices:
        if parts and parts[-1][-1] == i - 1:
            parts[-1] = [parts[-1][0], i]
        else:
            parts.append([i])
    return ", ".join("-".join(map(str, part)) for part in parts)


def short(text: str, most: int) -> str:
    """At most so many characters of a text, in one line."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"
