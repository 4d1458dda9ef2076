"""The question itself: the API as it is, the dynamics in words, and what is left out when it gets too long."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

from loop.contracts import Death, Evaluation, Observation, Parent, Plan, ReplayMode, ReplicaSpec
from strategy import policy_api
from strategy.baselines.registry import list_baselines, load_baseline
from strategy.evolve.synthesise.llm.api_text import api_text, rules_text
from strategy.evolve.synthesise.llm.budget import TokenEstimator
from strategy.evolve.synthesise.llm.dynamics import dynamics_text, trend
from strategy.evolve.synthesise.llm.lessons import Lessons
from strategy.evolve.synthesise.llm.prompt import Brief, Prompt, build_prompt
from tests.strategy.builders import busy, observation, serving
from tests.strategy.evolve.llm.example import example, on_page
from tests.strategy.evolve.worlds import knobs, score_of


def test_the_api_is_described_as_it_is() -> None:
    text, brief = api_text(), api_text(brief=True)
    for name in policy_api.__all__:
        assert name in text
        assert name in brief
        thing = getattr(policy_api, name)
        if inspect.isfunction(thing):
            line = next(line for line in text.splitlines() if line.startswith(f"def {name}("))
            assert all(parameter in line for parameter in inspect.signature(thing).parameters)
            assert line.split(": ")[-1]
    for field in dataclasses.fields(Observation):
        assert f"    {field.name}: " in text
    assert "DESIGN" not in text
    assert len(brief) < 0.6 * len(text)
    assert "may not" not in rules_text()
    for name in ("should_replan(obs", "plan(obs", "route(request", "priority(request", "heapq", "eval"):
        assert name in rules_text()


def test_dynamics_are_told_in_words_and_numbers_without_names_of_nodes() -> None:
    obs = observation(models=("tiny", "large"), demands=(busy("tiny", 900), busy("large", 100)))
    history = tuple((busy("tiny", n), busy("large", 1000 - n)) for n in (200, 400, 600))
    specs = (
        ReplicaSpec("tiny", ("n00/0",)),
        ReplicaSpec("tiny", ("n00/1",)),
        ReplicaSpec("tiny", ("n01/0",)),
    )
    obs = serving(obs, Plan(specs))
    devices = list(obs.devices)
    devices[2] = dataclasses.replace(devices[2], available=False)
    devices[3] = dataclasses.replace(devices[3], speed=0.6)
    devices[4] = dataclasses.replace(devices[4], leaving_in_s=30.0, spot=True)
    obs = dataclasses.replace(
        obs,
        history=history,
        devices=tuple(devices),
        changes=("down:n00", "speed:n00=0.6", "down:n07"),
        signals=(("headroom", 0.3), ("queueing", -0.8)),
        pain=0.8,
    )
    text = dynamics_text(obs)
    for expected in (
        "per window so far 200 400 600 900 (rising by 150%)",
        "per window so far 800 600 400 100 (falling by 64%)",
        "Mix of models: large 80%, tiny 20% 3 windows ago; large 10%, tiny 90% now.",
        "Devices big: 7 of 8 available on 1 nodes, 1 spot, 1 slowed to 60% at worst, 1 leaving within 30 s.",
        "2 x tiny on big tp=1",
        "1 x tiny on mid tp=1",
        "queueing -0.80, headroom +0.30",
        "2 x down, 1 x speed",
        "batch replay",
    ):
        assert expected in text
    assert "n00" not in text
    assert "n07" not in text
    online = dynamics_text(dataclasses.replace(obs, mode=ReplayMode.ONLINE))
    assert "online" in online


def test_reasons_of_death_lose_the_names_of_devices_and_nodes() -> None:
    obs = observation()
    lessons = Lessons()
    detail = "replica 3 on n00/1, n01/0 of node n00: n00/1 is used twice; not n000 or xn00"
    lessons.learn(knobs(), Evaluation(knobs().digest, None, Death.INFEASIBLE, detail), None)
    prompt = build_prompt(
        Brief("diff", Parent(knobs(), 1.0), (), "time"), obs, lessons, 50_000, TokenEstimator().tokens
    )
    assert prompt is not None
    user = prompt.messages[1]["content"]
    assert "replica 3 on <device>, <device> of node <node>: <device> is used twice; not n000 or xn00" in user


@pytest.mark.parametrize(
    ("series", "words"),
    [
        ([], "steady"),
        ([5.0], "steady"),
        ([0.0, 0.0], "steady"),
        ([100, 102, 99, 101], "steady"),
        ([100, 120, 140, 160], "rising by 36%"),
        ([160, 140, 120, 100], "falling by 27%"),
        ([100, 100, 100, 900], "burst: the last is 9.0 times the mean before"),
        ([100, 10, 100, 10, 100, 20], "volatile"),
    ],
)
def test_trends(series: list[float], words: str) -> None:
    assert trend(series).startswith(words)


def prompt_of(limit_tokens: int, form: str = "diff") -> Prompt | None:
    lessons = Lessons()
    for weight in (1.0, 2.0, 4.0):
        failed, lost, won = knobs(weight, 100), knobs(weight, 200), knobs(weight, 300)
        lessons.learn(failed, Evaluation(failed.digest, None, Death.ERROR, f"broke at {weight}"), None)
        lessons.learn(lost, Evaluation(lost.digest, score_of((12.0,)), Death.WORSE), 10.0)
        lessons.learn(won, Evaluation(won.digest, score_of((8.0 + weight / 4,))), 10.0)
    parents = [
        Parent(load_baseline(name).as_source(), 1.0 + i / 10) for i, name in enumerate(list_baselines()[:3])
    ]
    base = dataclasses.replace(parents[0], score=score_of((8.0, 9.0)), window_ratios=(0.9, 1.1))
    brief = Brief(form, base, tuple(parents[1:]), "total execution time")
    return build_prompt(brief, observation(), lessons, limit_tokens, TokenEstimator().tokens)


def test_the_prompt_holds_what_is_known() -> None:
    prompt = prompt_of(50_000)
    assert prompt is not None
    system, user = (message["content"] for message in prompt.messages)
    assert "no classes" in system
    for expected in (
        "total execution time; lower is better",
        "## API",
        "Devices big",
        "objective 1; total execution time 17 s, goodput 100.0%, TTFT p99 1 s, device-hours 1",
        "per window 0.90 1.10",
        "- error: broke at 4.0",
        "- 1.200: ",
        "- 0.825: ",
        "<<<<<<< SEARCH",
    ):
        assert expected in user
    assert user.count("## Another policy") == len(prompt.shown) == 2
    rewrite = prompt_of(50_000, "rewrite")
    assert rewrite is not None
    assert "<<<<<<< SEARCH" not in rewrite.messages[1]["content"]
    assert "the whole module in one fence" in rewrite.messages[1]["content"]


def test_the_prompt_is_bounded_and_loses_the_least_important_first() -> None:
    full = prompt_of(50_000)
    assert full is not None
    before = None
    for limit in range(full.tokens, 3000, -200):
        prompt = prompt_of(limit)
        if prompt is None:
            break
        assert prompt.tokens <= limit
        user = prompt.messages[1]["content"]
        held = {
            "others": len(prompt.shown),
            "lost": "What made it worse" in user,
            "api": api_text() in user,
            "won": "What worked" in user,
            "failed": "What failed" in user,
            "dynamics": "What the cluster sees" in user,
        }
        assert "## The policy to change" in user
        assert held["won"] <= held["failed"] <= held["dynamics"]
        assert held["others"] <= 1 or held["lost"]
        assert before is None or all(held[k] <= before[k] for k in held)
        before = held
    assert before is not None
    assert not any(before[k] for k in ("others", "lost", "api", "won"))
    assert prompt_of(500) is None


def test_the_page_shows_what_the_code_does() -> None:
    assert on_page() == example(), "run python -m tests.strategy.evolve.llm.example"
    assert "`candidate`" in on_page()
