from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategy.evolve.static import check_policy
from strategy.evolve.synthesise.llm.answer import NOTE_CHARS, Reading, read_answer, without_thoughts
from tests.examples import up_to
from tests.strategy.evolve.worlds import knobs

BASE = knobs().source
BETTER = knobs(weight=3.0).source
DIFF = """<<<<<<< SEARCH
WEIGHT = 30.0  # 0.01 to 100: best at 3
=======
WEIGHT = 3.0  # 0.01 to 100: best at 3
>>>>>>> REPLACE"""
FENCED = f"```python\n{BETTER}```"


def read(text: str, **options: str) -> Reading:
    return read_answer(text, BASE, **options)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (DIFF, "diff"),
        (f"Less weight on the queue.\n\n{DIFF}\n\nThis should help.", "diff"),
        (f"```diff\n{DIFF}\n```", "diff"),
        (FENCED, "rewrite"),
        (f"Here it is:\n\n{FENCED}\n\nLet me know!", "rewrite"),
        (f"~~~~\n{BETTER}~~~~", "rewrite"),
        (f"1. The policy:\n\n   ```py\n{BETTER}".replace("\n", "\n   ") + "```", "rewrite"),
        (f"```python\n{BETTER}", "rewrite"),
        (BETTER, "rewrite"),
        (f"Sure! Here is the policy.\n\n{BETTER}\nI hope that this helps.\n", "rewrite"),
        (FENCED.replace("\n", "\r\n"), "rewrite"),
        ("\ufeff" + BETTER, "rewrite"),
        (f"<think>Maybe\n```python\nimport os\n```\n</think>\n{FENCED}", "rewrite"),
        (f"Maybe WEIGHT = 1?\n</think>\n\n{DIFF}", "diff"),
        (f"<THINKING>a</THINKING><reasoning>b</reasoning>{DIFF}", "diff"),
        (
            f"For example:\n```python\nWEIGHT = 3.0\n```\nThe module:\n{FENCED}\nRun:\n```sh\nls\n```",
            "rewrite",
        ),
        (f"First try:\n```python\n{BETTER[:300]}\n```\nThe whole:\n{FENCED}", "rewrite"),
        (FENCED.replace('"""Never."""', '"""Never.\n\n```\nexample\n```\n"""'), "rewrite"),
        (f"{DIFF.replace('30.0', '31.0')}\n\nOr as a whole:\n{FENCED}", "rewrite"),
    ],
)
@pytest.mark.parametrize("asked_for", ["diff", "rewrite"])
def test_a_candidate_is_found(text: str, form: str, asked_for: str) -> None:
    reading = read(text, form=asked_for)
    assert (reading.outcome, reading.form) == ("candidate", form), reading
    assert not check_policy(reading.source)
    assert "WEIGHT = 3.0 " in reading.source
    assert reading.source.endswith("\n")
    assert not reading.source.endswith("\n\n")


@pytest.mark.parametrize(
    ("text", "options", "outcome", "detail"),
    [
        ("", {}, "no-code", "empty"),
        ("<think>endless thoughts", {}, "no-code", "empty"),
        ("The policy looks fine to me.", {}, "no-code", "no code"),
        ("I'm sorry, but I can't help with that.", {}, "refusal", "sorry"),
        ("I can\u2019t assist with this request.", {}, "refusal", "assist"),
        ("", {"refusal": "I will not."}, "refusal", "I will not."),
        ("anything", {"finish": "content_filter"}, "refusal", "content filter"),
        (FENCED[:700], {"finish": "length"}, "truncated", "limit"),
        (f"{DIFF}\n<<<<<<< SEARCH\nLIM", {"finish": "length"}, "truncated", "limit"),
        (f"{DIFF}\n<<<<<<< SEARCH\nLIM", {}, "bad-diff", "breaks off"),
        (DIFF.replace("30.0", "31.0"), {}, "bad-diff", "not in the source"),
        (DIFF.replace("WEIGHT = 30.0  # 0.01 to 100: best at 3\n=", '"""\n=', 1), {}, "bad-diff", "block 1"),
        ("```python\nimport os\n```", {}, "static", "may not import os"),
        ("```rust\nfn main() {}\n```", {}, "static", "does not parse"),
        (f"```python\n{BETTER.replace('def route', 'def rout')}```", {}, "static", "does not define route"),
        (f"```python\n{BETTER}\0```", {}, "static", ""),
        (f"```python\n{BASE}```", {}, "static", "change something"),
        ("```python\n" + "(" * 9000 + "```", {}, "static", ""),
        ("```python\n" + "x = 1\n" * 20_000 + "```", {}, "static", "longer than"),
    ],
)
def test_what_cannot_be_used_is_named(text: str, options: dict[str, str], outcome: str, detail: str) -> None:
    reading = read(text, **options)
    assert reading.outcome == outcome, reading
    assert detail in reading.detail
    assert reading.detail


def test_of_a_cut_off_answer_a_closed_module_counts_and_nothing_else() -> None:
    assert read(f"{FENCED}\nAnd now I explain at len", finish="length").outcome == "candidate"
    cut = FENCED[: FENCED.rindex(".arrival_s")]  # `return request` parses
    assert read(cut).outcome == "candidate"
    assert read(cut, finish="length").outcome == "truncated"
    assert read(BETTER, finish="length").outcome == "truncated"


def test_the_note_is_one_line_of_the_models_own() -> None:
    assert read(f"**Less weight** on\nthe queue.\n{DIFF}").note == "Less weight** on the queue."
    told = BETTER.replace("A policy with two knobs, of which", "Half the weight, since")
    assert read(f"Sure!\n```python\n{told}```").note.startswith("Half the weight, since only")
    assert read(DIFF).note.startswith("A policy with two knobs")
    noisy = read("bell\x07 " + "word " * 200 + DIFF).note
    assert len(noisy) <= NOTE_CHARS
    assert noisy.isprintable()


@settings(max_examples=up_to(100), deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "```",
                "```python",
                "~~~",
                "<think>",
                "</think>",
                *DIFF.split("\n"),
                *BETTER.split("\n"),
                "\0",
                "(((",
            ]
        ),
        max_size=40,
    ),
    st.sampled_from(["stop", "length", ""]),
    st.sampled_from(["diff", "rewrite"]),
)
def test_whatever_comes_is_read(lines: list[str], finish: str, form: str) -> None:
    reading = read("\n".join(lines), finish=finish, form=form)
    if reading.outcome == "candidate":
        assert not check_policy(reading.source)
    else:
        assert reading.detail


@settings(max_examples=up_to(100), deadline=None)
@given(st.text(alphabet="<>/thinkab \n", max_size=200))
def test_thoughts_never_remain_closed(text: str) -> None:
    assert "</think>" not in without_thoughts(text)
