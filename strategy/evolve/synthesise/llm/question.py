"""One question from prompt to candidate: sent, read, and once followed up when the answer cannot be used."""

from __future__ import annotations

from dataclasses import dataclass

from loop.contracts import PolicySource
from strategy.evolve.source import make_source
from strategy.evolve.static import normalised_digest
from strategy.evolve.synthesise.llm.answer import Reading, read_answer, without_thoughts
from strategy.evolve.synthesise.llm.budget import Reservation
from strategy.evolve.synthesise.llm.client import Message
from strategy.evolve.synthesise.llm.line import Line, ModelState, Tally
from strategy.evolve.synthesise.llm.prompt import Brief, Prompt, repair_request
from strategy.evolve.synthesise.llm.reply import Reply

_QUOTED_CHARS = 24_000
"""How much of an answer that could not be used is shown to the model again."""
_QUOTED_CHARS_OF_TRUNCATED = 600


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and of whom."""

    state: ModelState
    brief: Brief
    prompt: Prompt
    reservation: Reservation


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a question."""

    candidate: PolicySource | None
    tally: Tally
    """What it took."""
    answered: bool
    """Whether the model said anything: if not, that tells nothing about it."""


async def put(question: Question, line: Line, seen: set[str]) -> Answer:
    """Ask, and give the model one chance to correct what cannot be used. `seen`: normalised digests of what
    models wrote so far; a candidate that does the same as one of them is noted, and not handed out again."""
    tally = Tally()
    messages = list(question.prompt.messages)
    reservation: Reservation | None = question.reservation
    answered_once = False
    for chance in range(2):
        answered = await line.send(question.state, messages, reservation, tally)
        if answered is None:
            break
        answered_once = True
        reading = _read(answered.reply, question.brief)
        candidate = _candidate(reading, question) if reading.outcome == "candidate" else None
        if candidate is not None:
            identity = normalised_digest(candidate.source)
            if identity in seen:
                line.settle(answered, "duplicate", "the same as an earlier answer", candidate.digest, tally)
                break
            seen.add(identity)
            line.settle(answered, "candidate", "", candidate.digest, tally)
            return Answer(candidate, tally, answered=True)
        line.settle(answered, reading.outcome, reading.detail, None, tally)
        if reading.outcome == "refusal" or chance:
            break
        messages += _follow_up(answered.reply, reading)
        reservation = None
    return Answer(None, tally, answered_once)


def _read(reply: Reply, brief: Brief) -> Reading:
    base = brief.base.policy.source
    try:
        return read_answer(reply.text, base, finish=reply.finish, refusal=reply.refusal, form=brief.form)
    except Exception as error:  # noqa: BLE001  whatever an answer is made of, it must not end the search
        return Reading("no-code", f"the answer could not be read ({type(error).__name__})")


def _candidate(reading: Reading, question: Question) -> PolicySource:
    parents: tuple[str, ...] = (question.brief.base.policy.digest,)
    if reading.form == "rewrite":
        parents += question.prompt.shown
    return make_source(reading.source, parents=parents, operator=f"llm:{reading.form}", note=reading.note)


def _follow_up(reply: Reply, reading: Reading) -> list[Message]:
    limit = _QUOTED_CHARS_OF_TRUNCATED if reading.outcome == "truncated" else _QUOTED_CHARS
    said = without_thoughts(reply.text).strip()
    said = said[:limit] + (" ..." if len(said) > limit else "")
    return [
        {"role": "assistant", "content": said or "(nothing)"},
        {"role": "user", "content": repair_request(reading.outcome, reading.detail)},
    ]
