"""The worked example of docs/llm.md, made by the real code. `python -m tests.strategy.evolve.llm.example`
writes it into the page."""

from __future__ import annotations

import difflib
import re
from dataclasses import replace
from pathlib import Path

from loop.contracts import Death, Evaluation, Parent, Plan, Score
from strategy.baselines.registry import load_baseline
from strategy.evolve.source import make_source
from strategy.evolve.synthesise.llm.answer import read_answer
from strategy.evolve.synthesise.llm.budget import TokenEstimator
from strategy.evolve.synthesise.llm.lessons import Lessons
from strategy.evolve.synthesise.llm.prompt import FOCI, Brief, build_prompt
from strategy.policy_api import Memo
from tests.strategy.builders import busy, observation, serving
from tests.strategy.evolve.worlds import knobs

PAGE = Path(__file__).parents[4] / "docs" / "llm.md"
BEGIN, END = "<!-- example: begin -->\n", "<!-- example: end -->\n"
ANSWER = """Short answers first within a tier: they then wait for nobody, and long ones are hardly later for it.

<<<<<<< SEARCH
\"\"\"Best static layout; each request joins the replica that is estimated to finish it first.

=======
\"\"\"Short answers first: a predicted output token puts a request back in the queue by some milliseconds.

In arrival order a long answer holds up everybody behind it. Requests still age, so that none is overtaken for
ever. All else is the best static layout and routing to the replica that is estimated to finish first.
>>>>>>> REPLACE

<<<<<<< SEARCH
MAX_NUM_SEQS = 256  # 16 to 1024: requests that a replica decodes together
=======
MAX_NUM_SEQS = 256  # 16 to 1024: requests that a replica decodes together
TOKEN_DELAY_S = 0.02  # 0 to 0.5: seconds of arrival that a predicted output token counts as
>>>>>>> REPLACE

<<<<<<< SEARCH
\"\"\"First come, first served within a tier.\"\"\"
return first_come(request)
=======
\"\"\"Within a tier by arrival, later by what the answer is predicted to take.\"\"\"
return first_come(request) + TOKEN_DELAY_S * request.predicted_output_tokens
>>>>>>> REPLACE
"""


def example() -> str:
    """Prompt, answer and what comes of it, as Markdown. The API part of the prompt is left out."""
    base = load_baseline("least_loaded").as_source()
    score = Score(297.0, 297.0, 14.0, 0.93, 1.0, 2.4e6, (154.0, 143.0), replan_rate=0.5)
    parent = Parent(base, 1.0, score, (1.0, 1.0))
    now = replace(
        busy("tiny"), ttft_p50_s=1.2, ttft_p99_s=14.0, tpot_p50_s=0.03, tpot_p99_s=0.08, goodput=0.93
    )
    obs = observation(models=("tiny",), nodes=(("big", 8), ("mid", 4)), demands=(now,))
    specs = load_baseline("least_loaded").plan(obs, 1.0, Memo()).replicas
    obs = serving(obs, Plan(specs))
    devices = tuple(replace(d, leaving_in_s=60.0, spot=True) if d.kind == "mid" else d for d in obs.devices)
    obs = replace(
        obs,
        history=tuple((busy("tiny", n),) for n in (900, 1200, 1500)),
        devices=devices,
        changes=("leaving:n01",),
        signals=(("queueing", -0.4), ("headroom", 0.1)),
        pain=0.4,
        pleasure=0.1,
        last_serving_s=143.0,
        last_reconfiguration_s=48.0,
        ticks_since_replan=3,
    )
    lessons = Lessons()
    slow = replace(knobs(), note="exhaustive search over all layouts", operator="llm:rewrite")
    lessons.learn(slow, Evaluation(slow.digest, None, Death.TIMEOUT, "plan took longer than 2 s"), None)
    brief = Brief("diff", parent, (), "total execution time", FOCI[2])
    prompt = build_prompt(brief, obs, lessons, 12_000, TokenEstimator().tokens)
    assert prompt is not None
    user = re.sub(r"(## API[^\n]*\n).*?(?=\n\n## )", r"\1...", prompt.messages[1]["content"], flags=re.DOTALL)
    reading = read_answer(ANSWER, base.source)
    candidate = make_source(reading.source, parents=(base.digest,), operator="llm:diff", note=reading.note)
    changed = difflib.unified_diff(
        base.source.splitlines(), candidate.source.splitlines(), base.name, candidate.name, lineterm="", n=1
    )
    outcome = (
        f"`{reading.outcome}`: `{candidate.name}`, operator `{candidate.operator}`, parent `{base.name}`,\n"
        f"note: {candidate.note}"
    )
    return (
        "The question (the system message, which holds the rules, and the API are left out here):\n\n"
        f"````text\n{user}\n````\n\nAn answer:\n\n````text\n{ANSWER}````\n\n"
        f"What comes of it, {outcome}\n\n```diff\n" + "\n".join(changed) + "\n```\n"
    )


def on_page() -> str:
    """The example as the page has it."""
    return PAGE.read_text().split(BEGIN)[1].split(END)[0]


if __name__ == "__main__":
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(before + BEGIN + example() + END + rest.split(END)[1])
