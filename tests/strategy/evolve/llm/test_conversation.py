"""What is made of answers, over real HTTP: follow-ups, budget, which model is asked, what it is told."""

from __future__ import annotations

import math

import pytest

from loop.contracts import Death, Evaluation, Exchange
from strategy.evolve.synthesise.llm import LlmConfig, LlmModel, LlmSynthesiser
from tests.strategy.evolve.llm.asking import BASE, OBS, PARENTS, asking, diff_to
from tests.strategy.evolve.llm.server import Asked, Says, endpoint, error, in_turn, said
from tests.strategy.evolve.worlds import knobs, score_of

GOOD = said(diff_to(3.0))


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.mark.parametrize(
    ("first", "outcome", "told"),
    [
        (said("```python\nimport os\n```"), "static", "may not import os"),
        (said(diff_to(3.0, base=77.0)), "bad-diff", "not in the source"),
        pytest.param(said("You could lower the weight."), "no-code", "holds no code", marks=pytest.mark.slow),
        pytest.param(said(None), "no-code", "is empty", marks=pytest.mark.slow),
        pytest.param(said("", tool_calls=[{"id": "x"}]), "no-code", "is empty", marks=pytest.mark.slow),
        (said("```python\n" + BASE.source[:200], finish="length"), "truncated", "much shorter"),
    ],
)
def test_the_model_gets_one_chance_to_correct_itself(first: Says, outcome: str, told: str) -> None:
    with asking(in_turn(first, GOOD)) as it:
        it.until(lambda: bool(it.given))
        question, follow_up = it.server.asked[:2]
    assert it.outcomes[:2] == [outcome, "candidate"]
    assert follow_up.body["messages"][:2] == question.body["messages"]
    assert [m["role"] for m in follow_up.body["messages"]] == ["system", "user", "assistant", "user"]
    assert told in follow_up.last
    assert all(m["content"] for m in follow_up.body["messages"])


def test_there_is_no_second_chance() -> None:
    with asking(in_turn(said("no"), said("no"), GOOD)) as it:
        it.until(lambda: bool(it.given))
    assert it.outcomes[:3] == ["no-code", "no-code", "candidate"]
    assert len(it.server.asked[2].body["messages"]) == 2


@pytest.mark.parametrize(
    "first",
    [
        said("I'm sorry, but I can't help with that."),
        pytest.param(said(None, refusal="I will not."), marks=pytest.mark.slow),
        pytest.param(said("", finish="content_filter"), marks=pytest.mark.slow),
        error(400, "The response was filtered.", code="content_filter"),
    ],
)
def test_a_refusal_is_noted_and_not_argued_with(first: Says) -> None:
    with asking(in_turn(first, GOOD)) as it:
        it.until(lambda: bool(it.given))
    assert it.outcomes[:2] == ["refusal", "candidate"]
    assert len(it.server.asked[1].body["messages"]) == 2


def test_surrogates_and_other_oddities_in_an_answer_are_survived() -> None:
    odd = b'{"choices": [{"message": {"content": "\\ud800 \\u0000\\n```python\\nx\\ud800 = 1\\n```"}}]}'
    with asking(in_turn(Says(odd), GOOD)) as it:
        it.until(lambda: bool(it.given))
    assert it.outcomes[:2] == ["static", "candidate"]
    for exchange in it.exchanges:
        (exchange.prompt + exchange.answer).encode()


def test_the_same_answer_again_is_noted_and_not_given_again() -> None:
    with asking(in_turn(GOOD)) as it:
        it.until(lambda: "duplicate" in it.outcomes)
    assert len(it.given) == 1
    assert it.outcomes[:2] == ["candidate", "duplicate"]
    assert it.exchanges[1].digest == it.given[0].digest


@pytest.mark.slow
def test_a_model_that_gives_nothing_is_asked_ever_less_often() -> None:
    with asking(in_turn(said("no")), backoff_s=60.0, breaker_cap_s=60.0) as it:
        it.until(lambda: bool(it.synthesiser.trouble))
        assert "the last 6 answers were of no use" in it.synthesiser.trouble
        assert it.synthesiser.pending == 0  # no more ideas for now
        assert len(it.server.asked) == 12  # six questions, each with its follow-up


def total(exchanges: list[Exchange]) -> int:
    return sum(exchange.prompt_tokens + exchange.completion_tokens for exchange in exchanges)


@pytest.mark.slow
@pytest.mark.parametrize("in_flight", [1, 4])
def test_the_token_budget_stops_cleanly(in_flight: int) -> None:
    budget = 60_000

    def script(asked: Asked) -> Says:
        return said(diff_to(1.0 + asked.number), usage=(len(asked.prompt) // 4, 900))

    with asking(script, token_budget=budget, in_flight=in_flight) as it:
        it.until(lambda: bool(it.synthesiser.trouble))
        it.settle()
        assert it.synthesiser.ask(PARENTS, OBS, 4) == []
        assert it.synthesiser.pending == 0
        assert f"of {budget} used" in it.synthesiser.trouble
        cost = it.synthesiser.cost
    assert budget // 2 < cost.prompt_tokens + cost.completion_tokens <= budget
    assert cost.prompt_tokens + cost.completion_tokens == total(it.exchanges)
    assert len(it.given) == cost.requests == len(it.exchanges)


@pytest.mark.slow
def test_the_money_budget_counts_failures_that_may_be_charged() -> None:
    model = LlmModel("m", usd_per_million_input=2.0, usd_per_million_output=8.0)

    def script(asked: Asked) -> Says:
        if asked.number % 3 == 0:
            return Says(b"{broken")
        return said(diff_to(1.0 + asked.number), usage=(5000, 1000))

    with asking(script, models=(model,), usd_budget=0.3) as it:
        it.until(lambda: "money budget" in it.synthesiser.trouble)
        cost = it.synthesiser.cost
    assert 0.15 < cost.usd <= 0.3
    assert math.isclose(cost.usd, sum(exchange.usd for exchange in it.exchanges))
    assert cost.failures == sum(exchange.outcome != "candidate" for exchange in it.exchanges)
    assert all(e.usd > 0.03 for e in it.exchanges if e.outcome == "server-error")


@pytest.mark.parametrize("usage", [None, [], {}, {"prompt_tokens": -1, "completion_tokens": "many"}])
def test_what_is_not_counted_is_estimated(usage: object) -> None:
    answer = said([{"type": "text", "text": diff_to(3.0)}])
    with asking(in_turn(Says({**answer.body, "usage": usage}))) as it:
        it.until(lambda: bool(it.given))
        first = it.exchanges[0]
    assert 0.2 * len(first.prompt) < first.prompt_tokens < 0.5 * len(first.prompt)
    assert 0.2 * len(first.answer) < first.completion_tokens < 0.5 * len(first.answer) + 10


def test_a_request_that_was_turned_away_costs_nothing() -> None:
    with asking(in_turn(error(500), error(429, headers={"retry-after": "0"}), GOOD)) as it:
        it.until(lambda: bool(it.given))
    assert [exchange.prompt_tokens for exchange in it.exchanges[:3]] == [0, 0, 1000]


def test_after_the_deadline_nothing_is_sent() -> None:
    now = 0.0
    with endpoint(lambda asked: said(diff_to(1.0 + asked.number))) as server:
        config = LlmConfig(server.url, (LlmModel("m"),), deadline_s=60.0, wait_s=5.0)
        synthesiser = LlmSynthesiser(config, clock=lambda: now)
        assert synthesiser.ask(PARENTS, OBS, 4)
        now = 60.0
        while synthesiser.pending:
            synthesiser.ask(PARENTS, OBS, 4)
        asked = len(server.asked)
        assert synthesiser.ask(PARENTS, OBS, 4) == []
        assert len(server.asked) == asked
        assert synthesiser.trouble == "the deadline of 60 s has passed"
        synthesiser.close()


@pytest.mark.slow
def test_the_model_that_improves_policies_is_asked_more_often() -> None:
    def script(asked: Asked) -> Says:
        return said(diff_to(1.0 + asked.number + 0.5 * (asked.model == "able")))

    with asking(script, models=(LlmModel("able"), LlmModel("unable"))) as it:
        authors: dict[str, str] = {}
        for _ in range(60):
            it.until(lambda: bool(it.given))
            authors.update({e.digest: e.model for e in it.exchanges if e.digest})
            for candidate in it.given:
                objective = 8.0 if authors[candidate.digest] == "able" else 11.0
                it.synthesiser.tell(candidate, Evaluation(candidate.digest, score_of((objective,))), 10.0)
            it.given.clear()
    late = [asked.model for asked in it.server.asked[30:]]
    assert late.count("able") > 0.75 * len(late)


@pytest.mark.slow
def test_what_became_of_candidates_stands_in_the_next_prompt() -> None:
    with asking(lambda asked: said(diff_to(3.0 + asked.number))) as it:
        it.until(lambda: bool(it.given))
        mine = it.given[0]
        it.synthesiser.tell(mine, Evaluation(mine.digest, score_of((9.0,))), 10.0)
        slow, bad, other = knobs(weight=51.0), knobs(weight=52.0), knobs(weight=53.0)
        it.synthesiser.tell(slow, Evaluation(slow.digest, None, Death.TIMEOUT, "plan took 3 s"), None)
        it.synthesiser.tell(bad, Evaluation(bad.digest, score_of((15.0,)), Death.WORSE, "1.5"), 10.0)
        it.synthesiser.overhear(other, Evaluation(other.digest, None, Death.ERROR, "KeyError: 'x'"), None)
        before = len(it.server.asked)
        it.until(lambda: len(it.server.asked) > before + 2)
        prompt = it.server.asked[-1].prompt
    for expected in (
        f"0.900: {mine.note}",
        "- timeout: plan took 3 s",
        "- 1.500: not described",
        "- error: KeyError: 'x'",
    ):
        assert expected in prompt
