from __future__ import annotations

import ast
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loop.contracts import Death, Evaluation, EvaluationTask, Parent, PolicySource
from strategy.baselines import load_baseline
from strategy.evolve import check_policy
from strategy.evolve.idioms import catalogue
from strategy.evolve.parts import graft, take_apart
from strategy.evolve.source import make_source
from strategy.evolve.synthesise import BuiltinSynthesiser, random_program
from strategy.evolve.synthesise.combine import combined_planners, combined_routes, combined_triggers
from strategy.evolve.synthesise.conditions import change_condition, insert_condition
from strategy.evolve.synthesise.constants import Constant, Tuner, find_constants, skeleton, with_constants
from strategy.evolve.synthesise.edits import EDITS, _sum_in, add_term, remove_term
from strategy.evolve.synthesise.moves import idiom_priors
from strategy.evolve.synthesise.replacing import replace_estimate
from strategy.evolve.tuning import tune_constants
from tests.examples import some_slow
from tests.strategy.builders import busy, observation
from tests.strategy.evolve.deciding import can_decide
from tests.strategy.evolve.worlds import SyntheticEvaluator, distance, knobs, score_of

GOLDEN = Path(__file__).parent / "golden"
SEEDS = ("least_loaded", "kv_aware", "periodic_rebalance", "threshold_autoscaler")


def parents() -> list[Parent]:
    return [Parent(load_baseline(name).as_source(), 1.0 + i) for i, name in enumerate(SEEDS)]


@pytest.mark.slow
def test_candidates_pass_the_check_and_can_decide() -> None:
    found = BuiltinSynthesiser(seed=11).ask(parents(), None, 40)
    assert len(found) == 40
    assert len({c.operator for c in found}) >= 5
    known = {p.policy.digest for p in parents()}
    for candidate in found:
        assert check_policy(candidate.source) == [], candidate.source
        assert candidate.note
        assert candidate.parents
        assert set(candidate.parents) <= known
        assert ast.get_docstring(ast.parse(candidate.source))
        can_decide(candidate)


@pytest.mark.slow
def test_reproducible_from_the_seed() -> None:
    def run(seed: int) -> list[str]:
        synthesiser = BuiltinSynthesiser(seed)
        found = []
        for _ in range(3):
            for candidate in synthesiser.ask(parents(), None, 8):
                found.append(candidate.source)
                score = score_of([float(len(candidate.source))])
                synthesiser.tell(candidate, Evaluation(candidate.digest, score), 2000.0)
        return found

    assert run(4) == run(4)
    assert run(4) != run(5)


@pytest.mark.slow
def test_no_candidate_comes_twice_and_seeds_do_not_come_back() -> None:
    synthesiser = BuiltinSynthesiser(seed=6)
    found = [c.source for _ in range(4) for c in synthesiser.ask(parents(), None, 10)]
    assert len(set(found)) == len(found)


@pytest.mark.slow
def test_descendants_of_descendants_stay_sound() -> None:
    """Edits on edits on edits: what a long evolution does."""
    rng, synthesiser, pool = random.Random(1), BuiltinSynthesiser(seed=8), parents()
    for _ in range(8):
        found = synthesiser.ask(pool, None, 4)
        for candidate in found:
            assert check_policy(candidate.source) == [], candidate.source
            assert len(candidate.source) < 12_000
        pool = [*pool[-4:], *(Parent(c, rng.random()) for c in found)]
    for parent in pool:
        can_decide(parent.policy)


def made_by(operator: str, count: int, seed: int = 3) -> tuple[BuiltinSynthesiser, list[PolicySource]]:
    """Candidates of one operator alone."""
    synthesiser = BuiltinSynthesiser(seed)
    synthesiser._operators = [operator]
    synthesiser._openings[()] = []
    return synthesiser, synthesiser.ask(parents()[:1], None, count)


def test_step_constant_moves_one_constant_within_its_range() -> None:
    parent = parents()[0].policy
    before = {c.name: c for c in find_constants(parent.source)}
    _, found = made_by("step-constant", 12)
    assert len(found) == 12
    moved = set()
    for candidate in found:
        assert skeleton(candidate.source) == skeleton(parent.source)
        (constant,) = [c for c in find_constants(candidate.source) if c.value != before[c.name].value]
        was = before[constant.name]
        assert was.low <= constant.value <= was.high
        step = abs(was.to_unit(constant.value) - was.to_unit(was.value))
        assert 0.0 < step < 0.36  # a third, and what rounding adds
        assert candidate.note == f"moved {was.name} {was.value:g} -> {constant.value:g}"
        moved.add((was.name, constant.value > was.value))
    assert {up for _, up in moved} == {True, False}
    assert len({name for name, _ in moved}) > 1
    no_constants = make_source("def should_replan(obs, memo):\n    return False\n")
    assert BuiltinSynthesiser(seed=1)._stepped(no_constants) is None


@pytest.mark.slow
def test_swap_pair_swaps_trigger_and_planner_and_leaves_the_rest() -> None:
    parent = take_apart(parents()[0].policy.source)
    _, found = made_by("swap-pair", 12)
    assert len(found) == 12
    for candidate in found:
        parts = take_apart(candidate.source)
        for function in ("route", "priority"):
            assert parts.functions[function] == parent.functions[function]
        for function in ("should_replan", "plan"):
            texts = [graft(parent, i.parts, function).functions[function] for i in catalogue()
                     if i.function == function]  # fmt: skip
            assert ast.dump(ast.parse(parts.functions[function])) in {ast.dump(ast.parse(t)) for t in texts}
        assert candidate.note.startswith("should_replan: ")
        assert "; plan: " in candidate.note


def test_an_idiom_that_paid_is_worth_more() -> None:
    synthesiser, found = made_by("swap-idiom", 5)
    arms = {c.digest: synthesiser._asked[c.digest].arms[1] for c in found}
    good, bad = found[0], next(c for c in found if arms[c.digest] != arms[found[0].digest])
    before = {arm: synthesiser._worth(arm) for arm in arms.values()}
    for candidate, objective in ((good, 50.0), (bad, 200.0)):
        synthesiser.tell(candidate, Evaluation(candidate.digest, score_of([objective])), 100.0)
    assert synthesiser._worth(arms[good.digest]) > before[arms[good.digest]]
    assert synthesiser._worth(arms[bad.digest]) < before[arms[bad.digest]]
    worth = synthesiser._worth(arms[good.digest])
    synthesiser.tell(good, Evaluation(good.digest, score_of([50.0])), 100.0)
    assert synthesiser._worth(arms[good.digest]) == worth, "told twice, counted once"


def test_a_stranger_is_no_lesson() -> None:
    synthesiser, _ = made_by("swap-idiom", 1)
    stranger = parents()[1].policy
    before = [synthesiser._worth(arm) for arm in synthesiser._operators]
    synthesiser.tell(stranger, Evaluation(stranger.digest, score_of([1.0])), 100.0)
    assert [synthesiser._worth(arm) for arm in synthesiser._operators] == before


def test_it_opens_with_what_is_known_to_pay_and_again_when_the_demand_has_changed() -> None:
    synthesiser = BuiltinSynthesiser(seed=1)
    quiet = observation(demands=[busy("tiny", 100)])
    crowd = observation(demands=[busy("tiny", 5000, inputs=200.0)])
    first = [c.note for c in synthesiser.ask(parents(), quiet, 10)]
    known = [i.what.lower() for i in catalogue() if (i.function, i.name) in idiom_priors()]
    assert sum(any(what in note.lower() for what in known) or note.startswith("set ") for note in first) >= 6
    left = len(synthesiser._openings[synthesiser._regime])
    synthesiser.ask(parents(), observation(demands=[busy("tiny", 110)]), 1)
    assert len(synthesiser._openings) == 1, "about the same demand: the opening goes on"
    synthesiser.ask(parents(), crowd, 1)
    assert len(synthesiser._openings) == 2
    assert len(synthesiser._openings[synthesiser._regime]) > left - 3


@pytest.mark.parametrize(
    "operator",
    some_slow(
        ["extend", *(f"edit:{name}" for name in EDITS)], "extend", "edit:add-term", "edit:insert-condition"
    ),
)
def test_every_operator_makes_sound_candidates(operator: str) -> None:
    synthesiser = BuiltinSynthesiser(seed=5)
    synthesiser._operators = [operator]
    synthesiser._openings[()] = []
    found = synthesiser.ask(extended_parents(), None, 4)
    assert found
    for candidate in found:
        assert candidate.operator == operator
        assert candidate.note
        can_decide(candidate)


def extended_parents() -> list[Parent]:
    """The baselines, and policies whose parts offer more to edit."""
    found = parents()
    for names in (
        ("cooldown", "local_search", "weighted_score"),
        ("named_pain", "forecast_load", "kv_bounded"),
    ):
        parts = take_apart(found[0].policy.source)
        for idiom in catalogue():
            if idiom.name in names:
                parts = graft(parts, idiom.parts, idiom.function)
        found.append(Parent(make_source(parts.render()), 1.0))
    return found


def test_failures_are_taken_in() -> None:
    synthesiser = BuiltinSynthesiser(seed=2)
    for candidate in synthesiser.ask(parents(), None, 12):
        synthesiser.tell(candidate, Evaluation(candidate.digest, None, Death.TIMEOUT, "late"), 100.0)
    assert len(synthesiser.ask(parents(), None, 12)) == 12


def test_nothing_to_work_on() -> None:
    assert BuiltinSynthesiser(seed=1).ask([], None, 3) == []
    odd = make_source("if True:\n    x = 1\n")
    assert BuiltinSynthesiser(seed=1).ask([Parent(odd, 1.0)], None, 3) == []


# Golden text: what an edit makes of a policy, word for word.


def golden(name: str, source: str) -> None:
    path = GOLDEN / f"{name}.py.txt"
    assert source == path.read_text(encoding="utf-8"), f"{path} differs; is the change meant?"


def test_golden_graft() -> None:
    idiom = next(i for i in catalogue() if i.name == "expected_completion")
    golden("graft", graft(take_apart(knobs().source), idiom.parts, "route").render())


def test_golden_insert_condition() -> None:
    edited = insert_condition(take_apart(knobs().source), random.Random(1))
    assert edited is not None
    golden("insert_condition", edited.parts.render())


def test_golden_change_condition() -> None:
    idiom = next(i for i in catalogue() if i.name == "cooldown")
    parts = graft(take_apart(knobs().source), idiom.parts, "should_replan")
    edited = next(e for seed in range(20) if (e := change_condition(parts, random.Random(seed))))
    golden("change_condition", edited.parts.render())


def test_golden_replace_estimate() -> None:
    idiom = next(i for i in catalogue() if i.name == "gain_over_cost")
    parts = graft(take_apart(knobs().source), idiom.parts, "should_replan")
    rng = random.Random(2)
    found = [e for _ in range(20) if (e := replace_estimate(parts, rng)) and "should_replan" in e.what]
    golden("replace_estimate", found[0].parts.render())


def test_golden_extended() -> None:
    """Trigger, planner and routing each with an idiom beside it."""
    by_name = {i.name: i for i in catalogue()}
    parts = take_apart(load_baseline("least_loaded").source)
    for combine, name in (
        (lambda *a: combined_triggers(*a, random.Random(1)), "gain_over_cost"),
        (combined_planners, "batch_limits"),
        (lambda *a: combined_routes(*a, random.Random(4)), "weighted_score"),
    ):
        idiom = by_name[name]
        edited = combine(parts, idiom.parts, idiom.name)
        assert edited is not None
        parts = edited.parts
    can_decide(make_source(parts.render()))
    golden("extended", parts.render())


def test_golden_terms() -> None:
    idiom = next(i for i in catalogue() if i.name == "least_backlog_seconds")
    parts = graft(take_apart(knobs().source), idiom.parts, "route")
    rng = random.Random(5)
    for _ in range(6):
        edited = add_term(parts, rng)
        parts = edited.parts if edited is not None else parts
    golden("add_terms", parts.render())
    less = remove_term(parts, random.Random(3))
    assert less is not None
    golden("remove_term", less.parts.render())


def test_golden_constants() -> None:
    golden("constants", with_constants(load_baseline("kv_aware").source, {"QUEUE_WEIGHT": 0.25}))


def test_helpers_of_the_same_name_do_not_meet() -> None:
    target = take_apart(load_baseline("least_loaded").source)
    other = load_baseline("least_loaded").source.replace("keep(obs)", "()")
    parts = graft(target, take_apart(other), "plan")
    assert "_layout_to_plan" in parts.functions
    assert "return _layout_to_plan(obs)" in parts.functions["plan"]
    assert "_layout(obs)" in parts.functions["should_replan"]
    assert check_policy(parts.render()) == []


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.sampled_from(sorted(EDITS)), st.integers(0, 99)), max_size=6),
)
def test_edits_in_any_order_keep_a_policy_sound(name: str, edits: list[tuple[str, int]]) -> None:
    parts = take_apart(load_baseline(name).source)
    for edit, seed in edits:
        edited = EDITS[edit](parts, random.Random(seed))
        if edited is not None:
            parts = edited.parts
            source = parts.render()
            assert check_policy(source) == []
            parts = take_apart(source)


@pytest.mark.parametrize("value", ["a - (b + c)", "(a - b) * c - d", "-a + b", "a if b else c", "a - -b"])
def test_sums_are_taken_apart_exactly(value: str) -> None:
    numbers = {"a": 2.0, "b": 3.0, "c": 5.0, "d": 7.0}
    text = f"def priority(request, replica, memo):\n    return {value}"
    parts = take_apart(f"{text}\n")
    found = _sum_in(parts, "priority")
    assert found is not None
    again = found.with_terms(list(found.terms)).splitlines()[-1].removeprefix("    return ")
    assert eval(again, dict(numbers)) == eval(value, dict(numbers))  # noqa: S307


# Constants.


def test_ranges_come_from_comments() -> None:
    found = {c.name: c for c in find_constants(load_baseline("least_loaded").source)}
    seqs = found["MAX_NUM_SEQS"]
    assert (seqs.low, seqs.high, seqs.integer) == (16, 1024, True)
    (assumed,) = find_constants("X = 8.0\nlower = 3\nY = 'text'\nZ = True\n")
    assert (assumed.name, assumed.low, assumed.high, assumed.integer) == ("X", 1.0, 64.0, False)


@given(st.floats(0, 1), st.floats(0.001, 10), st.floats(1.5, 1000), st.booleans())
def test_scales_are_inverse_and_stay_in_range(unit: float, low: float, factor: float, integer: bool) -> None:
    constant = Constant("X", low, low, low * factor, integer=False)
    value = constant.from_unit(unit)
    assert low <= value <= low * factor
    assert constant.to_unit(value) == pytest.approx(unit, abs=0.02)


def test_constants_are_set_in_place() -> None:
    source = "A = 1.0  # 0.1 to 10: x\nB = (\n    2  # 1 to 9: y\n)\nC = -1.5\n"
    changed = with_constants(source, {"A": 0.5, "B": 7.4, "C": 2.0})
    assert changed == "A = 0.5  # 0.1 to 10: x\nB = (\n    7  # 1 to 9: y\n)\nC = 2.0\n"
    assert skeleton(source) == skeleton(changed)


@pytest.mark.slow
def test_cma_finds_the_minimum_and_is_reproducible() -> None:
    constants = find_constants(knobs().source)

    def search(seed: int) -> tuple[float, list[dict[str, float]]]:
        tuner, best, asked = Tuner(constants, seed), float("inf"), []
        for _ in range(150):
            number, values = tuner.ask()
            worth = distance(make_source(with_constants(knobs().source, values)))
            tuner.tell(number, worth if worth < 5.0 else None)
            best = min(best, worth)
            asked.append(values)
        return best, asked

    best, asked = search(3)
    assert best < 0.1
    assert search(3)[1] == asked
    assert search(4)[1] != asked


def test_tune_constants_improves_within_its_budget() -> None:
    evaluator = SyntheticEvaluator()
    tasks = [EvaluationTask((0, 1)), EvaluationTask((0,), world=1)]
    tuned = tune_constants(knobs(), evaluator, tasks, evaluations=120, seed=1)
    assert len(evaluator.jobs) <= 120
    assert distance(tuned) < 0.3 * distance(knobs())
    assert tuned.parents == (knobs().digest,)
    assert check_policy(tuned.source) == []
    assert tune_constants(knobs(), SyntheticEvaluator(), tasks, 120, 1) == tuned
    assert tune_constants(knobs(), SyntheticEvaluator(), tasks, 3, 1) == knobs()
    with pytest.raises(ValueError, match="no tasks"):
        tune_constants(knobs(), evaluator, [], 9, 1)


def test_a_policy_without_a_score_is_not_tuned() -> None:
    def judge(policy: PolicySource, window: int, world: int) -> float:
        if policy == knobs():
            raise TimeoutError
        return 1.0

    evaluator = SyntheticEvaluator(judge)
    assert tune_constants(knobs(), evaluator, [EvaluationTask((0,))], evaluations=50, seed=1) == knobs()
    assert len(evaluator.jobs) == 1


# Random programs.


@pytest.mark.slow
def test_random_programs_differ_and_are_sound() -> None:
    programs = [random_program(seed) for seed in range(12)]
    assert len({p.digest for p in programs}) == 12
    assert random_program(7) == programs[7]
    for program in programs:
        assert check_policy(program.source) == [], program.source
        can_decide(program)


@pytest.mark.slow
def test_generated_code_is_formatted_and_lint_free(tmp_path: Path) -> None:
    """Generations of candidates, and edits upon them: as a person would have to hand them in."""
    rng, synthesiser, pool = random.Random(3), BuiltinSynthesiser(seed=21), extended_parents()
    sources = []
    for _ in range(12):
        found = synthesiser.ask(pool, None, 10)
        sources += [c.source for c in found]
        pool = [*pool[-6:], *(Parent(c, rng.random()) for c in found[:4])]
    for _ in range(160):
        edited = EDITS[rng.choice(sorted(EDITS))](take_apart(rng.choice(sources)), rng)
        if edited is not None:
            sources.append(edited.parts.render())
    assert len(sources) > 200
    for index, source in enumerate(sources):
        assert check_policy(source) == [], source
        (tmp_path / f"policy_{index}.py").write_text(source, encoding="utf-8")
    ruff = shutil.which("ruff") or str(Path(sys.executable).with_name("ruff"))
    shutil.copy(Path(__file__).parents[3] / "pyproject.toml", tmp_path)
    lint = ["check", "--select", "F,I,W,E7,E9", "--ignore", "F841"]
    for command in (lint, ["format", "--check", "--diff"]):
        done = subprocess.run([ruff, *command, str(tmp_path)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[:5000]
