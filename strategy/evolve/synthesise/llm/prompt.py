"""The question to a model: rules and API, what the cluster sees, parents with scores, what failed and worked.

Its length is bounded: what matters least is shortened or left out first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loop.contracts import DeviceView, Observation, Parent
from strategy.evolve.synthesise.llm.api_text import api_text, rules_text
from strategy.evolve.synthesise.llm.client import Message
from strategy.evolve.synthesise.llm.dynamics import dynamics_text, without_names
from strategy.evolve.synthesise.llm.lessons import Lessons, score_text

Tokens = Callable[[str, int], int]
"""Estimated tokens of a text sent as so many messages."""

DIFF_FORM = """Answer with one sentence on what you change and why, then one or more blocks of this form and nothing else:

<<<<<<< SEARCH
lines of the policy, exactly as they stand
=======
what shall stand there instead
>>>>>>> REPLACE

Quote whole lines, enough of them that they stand in one place only. One block must rewrite the module
docstring: its first line says what changed, the next ones why."""

REWRITE_FORM = """Answer with one sentence on what you change and why, then the whole module in one fence:

```python
...
```

Its module docstring says in the first line what changed, and in the next ones why."""

FORMS = {"diff": DIFF_FORM, "rewrite": REWRITE_FORM}

FOCI = (
    "Change what you think limits it most.",
    "Look at the trigger and the planner together: when to change, and to what.",
    "Look at routing and queue order together.",
    "Look at how it takes the trend and the volatility of the demand into account.",
    "Try an idea that none of the policies shown uses.",
    "Make it simpler without making it worse.",
)
"""One of them ends each question: several under way at a time shall not all come to the same."""


@dataclass(frozen=True, slots=True)
class Brief:
    """What a question is about."""

    form: str
    """`diff` or `rewrite`."""
    base: Parent
    """The policy to change."""
    others: tuple[Parent, ...]
    """For inspiration, the best first."""
    goal: str
    """What the objective is, in words."""
    focus: str = FOCI[0]
    """Where to look."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question as it is sent."""

    messages: tuple[Message, ...]
    shown: tuple[str, ...]
    """Digests of the other parents that it shows."""
    tokens: int
    """Estimated."""


@dataclass(slots=True)
class _Piece:
    """A part of the prompt in ever shorter versions."""

    versions: list[str]
    weight: int
    """What has the least is shortened first; 0: never."""
    digest: str = ""

    @property
    def text(self) -> str:
        return self.versions[0]


def build_prompt(
    brief: Brief, obs: Observation | None, lessons: Lessons, limit_tokens: int, tokens: Tokens
) -> Prompt | None:
    """The question within the limit; None: the policy to change and the rules alone exceed it."""
    pieces = _pieces(brief, obs, lessons)
    system = f"{_ROLE}\n\n{rules_text()}"
    while True:
        user = "\n\n".join(piece.text for piece in pieces if piece.text)
        length = tokens(system + user, 2)
        if length <= limit_tokens:
            break
        cuttable = [piece for piece in pieces if piece.weight and len(piece.versions) > 1]
        if not cuttable:
            return None
        min(cuttable, key=lambda piece: piece.weight).versions.pop(0)
    shown = tuple(piece.digest for piece in pieces if piece.digest and piece.text)
    messages = ({"role": "system", "content": system}, {"role": "user", "content": user})
    return Prompt(messages, shown, length)


def repair_request(outcome: str, detail: str) -> str:
    """What to say when an answer could not be used: why, and what to do instead."""
    if outcome == "truncated":
        return (
            "Your answer broke off at the limit of its length. Answer again, much shorter: no reasoning, one "
            f"sentence, and only the few lines that matter most.\n\n{DIFF_FORM}"
        )
    reasons = {
        "static": f"That policy does not pass the check: {detail}.",
        "bad-diff": f"Those blocks could not be applied: {detail}.",
        "no-code": f"That could not be used: {detail}.",
    }
    return f"{reasons.get(outcome, detail)} Correct it.\n\n{REWRITE_FORM}"


_ROLE = """You improve the scheduling policy of a cluster that serves large language models. Policies are compared on the
same past windows of real load in a simulator; the better one goes live. Small, well-founded changes and bold
new ideas are both welcome; what counts is the measured objective, on windows and hardware not seen before."""


def _pieces(brief: Brief, obs: Observation | None, lessons: Lessons) -> list[_Piece]:
    """In the order of the prompt, which is not that of importance."""
    base = brief.base
    pieces = [
        _Piece([f"## Objective\n{brief.goal}; lower is better."], 0),
        _Piece([f"## API (strategy.policy_api)\n{api_text()}", f"## API\n{api_text(brief=True)}"], 40),
    ]
    if obs is not None:
        pieces.append(_Piece([f"## What the cluster sees\n{dynamics_text(obs)}", ""], 70))
    for rank, other in enumerate(brief.others):
        text = f"## Another policy: {_scored(other, lessons)}\n```python\n{other.policy.source.strip()}\n```"
        pieces.append(_Piece([text, ""], 30 if rank == 0 else 10 - min(rank, 9), other.policy.digest))
    pieces += _lesson_pieces(lessons, obs.devices if obs is not None else ())
    source = base.policy.source.strip("\n")
    pieces.append(_Piece([f"## The policy to change: {_scored(base, lessons)}\n```python\n{source}\n```"], 0))
    pieces.append(_Piece([f"## Your task\nWrite a better policy. {brief.focus}\n\n{FORMS[brief.form]}"], 0))
    return pieces


def _lesson_pieces(lessons: Lessons, devices: Sequence[DeviceView]) -> list[_Piece]:
    titled = (
        ("What worked (objective against its parent)", lessons.won_text(), 50),
        ("What made it worse (objective against its parent): do not repeat", lessons.lost_text(), 20),
        ("What failed, and why: avoid it", lessons.failed_text(), 60),
    )
    return [
        _Piece([f"## {title}\n{without_names(text, devices)}", ""], weight)
        for title, text, weight in titled
        if text
    ]


def _scored(parent: Parent, lessons: Lessons) -> str:
    """A parent's name and all that is known of its worth."""
    text = f"{parent.policy.name}, objective {parent.objective:.4g}"
    score = parent.score or lessons.score(parent.policy.digest)
    if score is not None:
        text += f"; {score_text(score)}"
    if parent.window_ratios:
        text += f"; per window {_ratios(parent.window_ratios)}"
    return f"{text}; {parent.policy.note}" if parent.policy.note else text


def _ratios(ratios: Sequence[float]) -> str:
    return " ".join(f"{ratio:.2f}" for ratio in ratios)
