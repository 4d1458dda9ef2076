"""RegimeModule: the original's answers whatever variants do."""

import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from execution.regimes.builder import Builder, Site, Tolerance, build
from execution.regimes.dispatcher import ORIGINAL
from execution.regimes.module import Checks, RegimeModule
from execution.regimes.recipe import BuildError, Recipe, open_artifact
from execution.regimes.regime import MaskedBatch, Regime


class TwoParts(nn.Module):
    """A small module of the masked kind."""

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            super().__init__()
            self.left, self.right = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor, present: Tensor) -> tuple[Tensor, ...]:
        return (self.left(x) * present[:, 0:1] + self.right(x) * present[:, 1:2],)


class Ticks:
    """A clock that only stands still: all variants cost the same."""

    def __call__(self) -> float:
        return 0.0


def _batch(rows: int = 2, mix: str = "10", seed: int = 0) -> tuple[Tensor, Tensor]:
    present = torch.tensor([[letter == "1" for letter in mix]] * rows)
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed)), present


def _reader() -> MaskedBatch:
    return MaskedBatch(present=1, inputs=2)


class Broken:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        self.calls += 1
        raise RuntimeError("no such kernel")


class Wrong(Broken):
    """Right for a while, then not."""

    def __init__(self, model: TwoParts, good: int) -> None:
        super().__init__()
        self.model, self.good = model, good

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        self.calls += 1
        answer: Tensor = self.model(*inputs)[0]
        return (answer if self.calls <= self.good else answer + 1,)


def test_a_variant_that_raises_is_dropped_and_the_caller_never_knows() -> None:
    model, broken = TwoParts(), Broken()
    served = RegimeModule(model, _reader(), general={"broken": broken})
    for _ in range(20):
        batch = _batch()
        assert torch.equal(served(*batch)[0], model(*batch)[0])
    (state,) = served.states().values()
    assert broken.calls == 1
    assert state.dropped == {"broken": "raised RuntimeError: no such kernel"}
    assert "dropped broken" in [event.what for event in served.events]
    assert "no such kernel" in served.explain()


def test_the_first_answer_is_compared() -> None:
    model = TwoParts()
    wrong = Wrong(model, good=0)
    served = RegimeModule(model, _reader(), general={"wrong": wrong})
    for _ in range(10):
        batch = _batch()
        assert torch.equal(served(*batch)[0], model(*batch)[0])
    assert wrong.calls == 1
    assert "times the tolerance" in next(iter(served.states().values())).dropped["wrong"]


def test_a_variant_that_goes_wrong_later_is_found_by_samples() -> None:
    model = TwoParts()
    wrong = Wrong(model, good=3)
    served = RegimeModule(model, _reader(), general={"wrong": wrong}, checks=Checks(every=2, beside=False))
    for _ in range(60):
        served(*_batch())
    assert "wrong" in next(iter(served.states().values())).dropped
    assert wrong.calls <= 3 + 3


def test_unknown_inputs_go_to_the_original() -> None:
    model, broken = TwoParts(), Broken()
    served = RegimeModule(model, _reader(), general={"broken": broken})
    x, present = _batch()
    assert torch.equal(served(x, present.int())[0], model(x, present.int())[0])
    assert not broken.calls
    assert not served.states()


def test_errors_of_the_original_are_the_callers() -> None:
    served = RegimeModule(TwoParts(), _reader())
    x, present = _batch()
    with pytest.raises(RuntimeError):
        served(x[:, :2], present)


def test_recipes_without_a_site_are_refused() -> None:
    with pytest.raises(ValueError, match="site"):
        RegimeModule(TwoParts(), _reader(), recipes=(Recipe("pruned"),))


def test_each_regime_has_its_own_holder() -> None:
    model = TwoParts()
    served = RegimeModule(model, _reader(), clock=Ticks())
    for mix in ("10", "01", "11"):
        served(*_batch(3, mix))
    assert set(served.states()) == {Regime(4, 0, mix) for mix in ("10", "01", "11")}
    assert served.holder(Regime(4, 0, "10")) == ORIGINAL
    assert served.idle


def test_tolerance_knows_nan_inf_shapes_and_types() -> None:
    tolerance = Tolerance(rtol=0.1, atol=0.0)
    one = torch.tensor([1.0, float("nan"), float("inf")])
    assert tolerance.worst((one,), (one.clone(),)) == 0
    assert tolerance.worst((one * 1.05,), (one,)) == pytest.approx(0.5)
    assert tolerance.worst((torch.zeros(3),), (one,)) == float("inf")
    assert tolerance.worst((torch.full((3,), float("nan")),), (one,)) == float("inf")
    assert tolerance.worst((one[:2],), (one,)) == float("inf")
    assert tolerance.worst((one.double(),), (one,)) == float("inf")
    assert tolerance.worst((), (one,)) == float("inf")


@torch.no_grad()
def test_what_is_wrong_only_later_is_found_beside_the_calls() -> None:
    model = TwoParts()
    wrong = Wrong(model, good=3)
    served = RegimeModule(model, _reader(), general={"wrong": wrong}, checks=Checks(every=0))
    with served:
        for _ in range(100_000):
            served(*_batch())
            state = next(iter(served.states().values()))
            if "wrong" in state.dropped:
                break
            time.sleep(0.001)  # the helper's turn
        assert "times the tolerance" in state.dropped["wrong"]
        assert served.holder(Regime(2, 0, "10")) == ORIGINAL
        assert torch.equal(served(*_batch())[0], model(*_batch())[0])


def test_the_first_general_variant_stands_in() -> None:
    model = TwoParts()
    served = RegimeModule(model, _reader(), general={"same": model}, clock=Ticks())
    served(*_batch())
    assert served.holder(Regime(2, 0, "10")) == "same"


@pytest.mark.slow
@torch.no_grad()
def test_what_the_store_has_is_opened_and_compared_before_it_answers(tmp_path: Path) -> None:
    model, regime = TwoParts(), Regime(2, 0, "10")
    recipes = (Recipe("pruned", "known_columns(columns='{mix}')"), Recipe("whole"))
    for recipe in recipes:
        build(model, recipe, regime, [_batch()], Site(tmp_path))
    with RegimeModule(model, _reader(), recipes=recipes, site=Site(tmp_path)) as served:
        for seed in range(100_000):
            batch = _batch(seed=seed)
            assert served.site.tolerance.worst(served(*batch), model(*batch)) <= 1
            if {"pruned", "whole"} <= set(served.states()[regime].estimates):
                break
            time.sleep(0.001)  # the helper's turn
        told = {event.what for event in served.events}
        assert {"arrived pruned", "arrived whole"} <= told


def test_recipes_are_built_proven_and_found_again(tmp_path: Path) -> None:
    model, site = TwoParts(), Site(tmp_path)
    recipe, regime, example = Recipe("pruned", "known_columns(columns='{mix}')"), Regime(2, 0, "10"), _batch()

    first = build(model, recipe, regime, [example], site)
    again = build(model, recipe, regime, [example], site)

    assert (first.cached, again.cached, first.folder) == (False, True, again.folder)
    assert first.operations < 6
    run = open_artifact(again, dict(model.named_parameters()))
    other = _batch(seed=5)
    assert torch.equal(run(*other)[0], model(*other)[0])
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".building")]


@pytest.mark.parametrize(
    ("pipeline", "mix", "told"),
    [
        ("known_columns(columns='{mix}')", "01", "wrong"),
        ("known_columns(columns='{mix}0')", "10", "2 columns"),
        ("no_such_pass", "10", "no pass is called"),
    ],
)
def test_what_cannot_be_built_says_why(tmp_path: Path, pipeline: str, mix: str, told: str) -> None:
    with pytest.raises(BuildError, match=told):
        build(TwoParts(), Recipe("r", pipeline), Regime(2, 0, mix), [_batch()], Site(tmp_path))


def test_torn_artifacts_are_refused(tmp_path: Path) -> None:
    model = TwoParts()
    made = build(model, Recipe("pruned"), Regime(2, 0, "10"), [_batch()], Site(tmp_path))
    (made.folder / "graph.pickle").write_bytes(b"\x80")
    with pytest.raises(BuildError, match="cannot be opened"):
        open_artifact(made, {})


@pytest.mark.slow
def test_variants_come_from_the_background(tmp_path: Path) -> None:
    """A real child process: builds one recipe, refuses another, and the module goes on answering."""
    model = TwoParts()
    recipes = (
        Recipe("pruned", "known_columns(columns='{mix}')"),
        Recipe("odd", "known_columns(columns='1')"),
    )
    with RegimeModule(model, _reader(), recipes=recipes, site=Site(tmp_path)) as served:
        calls = 0
        while not (served.idle and served.states() and next(iter(served.states().values())).settled):
            batch = _batch(2, "10", seed=calls % 7)
            assert served.site.tolerance.worst(served(*batch), model(*batch)) <= 1
            calls += 1
            time.sleep(0.005)  # requests leave the processor idle now and then
        (state,) = served.states().values()
        assert set(state.estimates) == {ORIGINAL, "pruned"}
        assert "2 columns" in state.dropped["odd"]
        assert any(event.what == "arrived pruned" for event in served.events)


@pytest.mark.slow
def test_a_dead_child_is_a_reason_and_the_next_one_works(tmp_path: Path) -> None:
    with Builder(TwoParts(), Site(tmp_path)) as builder:
        future = builder.submit(Recipe("pruned"), Regime(2, 0, "10"), [_batch()])
        pool = builder._pool
        assert pool is not None
        for child in list(pool._processes.values()):
            child.kill()
        with pytest.raises(Exception, match="terminated abruptly"):
            future.result(timeout=600)
        again = builder.submit(Recipe("pruned"), Regime(2, 0, "10"), [_batch()])
        assert again.result(timeout=600).worst_error <= 1


@torch.no_grad()
def test_a_restart_opens_and_times_what_the_store_has_before_the_first_call(tmp_path: Path) -> None:
    model, regime = TwoParts(), Regime(2, 0, "10")
    recipes = (Recipe("pruned", "known_columns(columns='{mix}')"), Recipe("whole"))
    for recipe in recipes:
        build(model, recipe, regime, [_batch()], Site(tmp_path))
    with RegimeModule(model, _reader(), recipes=recipes, site=Site(tmp_path)) as served:
        assert served.preload() == 2
        assert served.preload() == 0  # all of it is there
        state = served.states()[regime]
        assert set(state.estimates) == {ORIGINAL, "pruned", "whole"}
        assert state.settled
        assert state.calls == 0
        assert served.idle
        for seed in range(5):
            batch = _batch(seed=seed)
            assert served.site.tolerance.worst(served(*batch), model(*batch)) <= 1
    with RegimeModule(Other(), _reader(), recipes=recipes, site=Site(tmp_path)) as other:
        assert other.preload() == 0


class Other(TwoParts):
    """Of other source: what was built for TwoParts is not for it."""


def test_what_went_wrong_since_is_refused_at_the_start(tmp_path: Path) -> None:
    model, regime = TwoParts(), Regime(2, 0, "10")
    recipe = Recipe("pruned", "known_columns(columns='{mix}')")
    made = build(model, recipe, regime, [_batch()], Site(tmp_path))
    (made.folder / "graph.pickle").write_bytes(b"\x80")
    with RegimeModule(model, _reader(), recipes=(recipe,), site=Site(tmp_path)) as served:
        assert served.preload() == 0
        assert any(
            event.what == "refused pruned" and "cannot be opened" in event.why for event in served.events
        )
        assert not served.idle  # it is to be built again
    again = build(model, recipe, regime, [_batch()], Site(tmp_path))
    assert (again.folder, again.cached) == (made.folder, False)
    assert torch.equal(
        open_artifact(again, dict(model.named_parameters()))(*_batch())[0], model(*_batch())[0]
    )


def test_tolerance_takes_answers_that_ask_for_gradients(recwarn: pytest.WarningsRecorder) -> None:
    one = torch.ones(3, requires_grad=True)
    assert Tolerance().worst((one * 2,), (one * 2,)) == 0
    assert not recwarn.list
