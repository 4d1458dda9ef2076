"""The idiom library: each idiom fits into every baseline, and is written as an idiom should be."""

from __future__ import annotations

import pytest

from strategy.baselines import list_baselines, load_baseline
from strategy.evolve import check_policy
from strategy.evolve.idioms import FOLDERS, Idiom, catalogue
from strategy.evolve.parts import graft, take_apart
from strategy.evolve.source import make_source
from strategy.evolve.synthesise.constants import find_constants
from tests.strategy.evolve.deciding import can_decide

HOSTS = [name for name in list_baselines() if not check_policy(load_baseline(name).source)]


@pytest.mark.parametrize("idiom", catalogue(), ids=lambda i: f"{i.function}-{i.name}")
def test_every_idiom_fits_and_can_decide(idiom: Idiom) -> None:
    source = grafted(idiom, "least_loaded")
    assert check_policy(source) == []
    can_decide(make_source(source))


@pytest.mark.slow
@pytest.mark.parametrize("idiom", catalogue(), ids=lambda i: f"{i.function}-{i.name}")
def test_every_idiom_fits_and_can_decide_in_every_baseline(idiom: Idiom) -> None:
    for name in HOSTS:
        source = grafted(idiom, name)
        assert check_policy(source) == []
        can_decide(make_source(source))


def grafted(idiom: Idiom, baseline: str) -> str:
    return graft(take_apart(load_baseline(baseline).source), idiom.parts, idiom.function).render()


@pytest.mark.parametrize("idiom", catalogue(), ids=lambda i: f"{i.function}-{i.name}")
def test_every_idiom_says_what_it_does_and_why_and_states_its_ranges(idiom: Idiom) -> None:
    assert idiom.what
    assert len(idiom.why) > 60
    assert '"""' in idiom.parts.functions[idiom.function]
    for constant in idiom.parts.constants.values():
        (found,) = find_constants(constant)
        assert " to " in constant.split("#")[1]
        assert found.low <= found.value <= found.high
        assert len(constant) <= 104, "a tuned value may need a few more digits"


def test_the_library_is_rich() -> None:
    count = {f: sum(i.function == f for i in catalogue()) for f in FOLDERS}
    assert min(count.values()) >= 12
    assert sum(count.values()) >= 55
    names = [i.name for i in catalogue()]
    assert len(set(names)) == len(names)
    whats = [i.what for i in catalogue()]
    assert len(set(whats)) == len(whats)
