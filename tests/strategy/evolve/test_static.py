from __future__ import annotations

import pytest

from strategy.baselines import list_baselines, load_baseline
from strategy.evolve import check_policy
from strategy.evolve.static import MAX_SOURCE_BYTES, normalised_digest
from tests.strategy.evolve.worlds import knobs

GOOD = knobs().source


def messages(source: str) -> str:
    return "; ".join(str(v) for v in check_policy(source))


def in_route(statement: str) -> str:
    """The good policy with one more statement in `route`, on line 23."""
    return GOOD.replace('"""The least weighted."""', f'"""The least weighted."""\n    {statement}')


def test_good_policies_pass() -> None:
    assert check_policy(GOOD) == []
    plain = [name for name in list_baselines() if name != "milp_replan"]
    assert {name: check_policy(load_baseline(name).source) for name in plain} == {name: [] for name in plain}
    # the exact planner is trusted code with a solver behind it: no policy that evolution could write
    assert "may not import" in messages(load_baseline("milp_replan").source)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("import os", "may not import os"),
        ("from strategy.policy import digest_of", "may not import strategy.policy"),
        ("from math import *", "import names, not *"),
        ("from strategy.policy_api import _hidden", "private names"),
        ("from . import x", "may not import ."),
        ("eval('1')", "eval may not be used"),
        ("x = getattr(request, 'id')", "getattr may not be used"),
        ("x = open", "open may not be used"),
        ("x = __import__('os')", "__import__ may not be used"),
        ("x = ().__class__", "private attribute __class__"),
        ("x = memo._secret", "private attribute _secret"),
        ("x = __builtins__", "__builtins__ may not be used"),
        ("x = (i for i in ()).gi_frame", "gi_frame may not be used"),
        ("global WEIGHT", "state belongs into the memo"),
        ("request.id = 3", "attributes may not be assigned"),
        ("while True: pass", "does not end"),
        ("while 1:\n        x = 1", "does not end"),
        ("class A: pass", "plain functions"),
        ("with memo: pass", "with has no use"),
        ("del memo['x']", "del has no use"),
        ("try: pass\n    except: pass", "bare except"),
        ("x = random.random()", "random.Random(seed)"),
        ("x = random.Random()", "random.Random(seed)"),
        (f"x = {'a' * 5000!r}", "literal of more than"),
        ("x = " + "(" * 90 + "1" + " + 1)" * 90, "nested deeper"),
    ],
)
def test_what_is_forbidden_is_named_with_its_line(statement: str, message: str) -> None:
    source = in_route(statement)
    line = source[: source.index(statement)].count("\n") + 1
    found = [v for v in check_policy(source) if message in v.message]
    assert found, messages(source)
    assert line <= found[0].line <= line + 2


@pytest.mark.parametrize(
    "statement",
    [
        "while True:\n        break",
        "while True:\n        return 0",
        "x = random.Random(7).random()",
        "memo['count'] = memo.get('count', 0.0) + 1.0",
        "x = request._replace(id=3)",
        "LIMIT = [1]\n    LIMIT.append(2)",
    ],
)
def test_what_is_allowed(statement: str) -> None:
    assert check_policy(in_route(statement)) == []


def test_the_four_functions_and_their_parameters() -> None:
    assert "does not define route(request, replicas, memo)" in messages(GOOD.replace("def route", "def rout"))
    swapped = GOOD.replace("def route(request: RequestView, replicas", "def route(replicas, request")
    assert "route must take (request, replicas, memo)" in messages(swapped)
    assert "route must take" in messages(GOOD.replace("memo: Memo) -> int", "memo: Memo, *rest) -> int"))
    assert "priority must return" in messages(GOOD.replace("return request.arrival_s", "yield 1.0"))
    assert "plain functions" in messages(GOOD.replace("def plan", "async def plan"))


def test_state_beside_the_memo() -> None:
    source = GOOD.replace("LIMIT = 500", "SEEN = {}\nLIMIT = 500").replace(
        "    return request.arrival_s", "    SEEN[request.id] = 1\n    return request.arrival_s"
    )
    assert "SEEN is a constant" in messages(source)
    assert "SEEN is a constant" in messages(source.replace("SEEN[request.id] = 1", "SEEN.update(a=1)"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def", "does not parse"),
        ("x = 1\x00", "does not parse"),
        ("#" * (MAX_SOURCE_BYTES + 1), "longer than"),
        ("x = [" + "0," * 30_000 + "]", "larger than"),
        ("x = " + "-" * 50_000 + "1", "nested|parse"),
        ("print('hello')\n" + GOOD, "top level"),
        ("if True:\n    x = 1\n" + GOOD, "top level"),
        ("a.b = 1\n" + GOOD, "only names"),
        ("\ud800", "does not parse"),
    ],
)
def test_odd_sources(source: str, message: str) -> None:
    found = messages(source)
    assert any(part in found for part in message.split("|")), found


def test_normalised_digest_ignores_what_makes_no_difference() -> None:
    base = normalised_digest(GOOD)
    assert normalised_digest(GOOD.replace("Never.", "Not once.")) == base
    assert normalised_digest(GOOD + "\n# a remark\n") == base
    assert normalised_digest(GOOD.replace("  # best at", " # the best at")) == base
    assert normalised_digest(GOOD.replace(" -> int", "")) == base
    assert normalised_digest(GOOD.replace("30.0", "30.000001")) == base
    assert normalised_digest(GOOD.replace("RequestView, Sequence", "RequestView, REJECT, Sequence")) == base
    assert normalised_digest(GOOD.replace("30.0", "31.0")) != base
    assert normalised_digest(GOOD.replace("waiting + i", "running + i")) != base
