"""The parts of the strategy commands: splits, words, verdicts, lineages and pictures."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated
from xml.etree import ElementTree as ET

import pytest
import typer
from typer.testing import CliRunner

from loop.commands.archive_words import ranges
from loop.commands.code_differences import code_difference, in_words
from loop.commands.evolve_result import Comparison, Side
from loop.commands.evolve_view import verdict as evolve_verdict
from loop.commands.explain_verdict import verdict
from loop.commands.folding import folded
from loop.commands.pairing import by_dynamics, dynamics, gain, pair
from loop.commands.policies import find_policies, tidy
from loop.compose.objective import Objective
from loop.compose.offline_evolution import OVER, SPENT, split, why_end
from loop.compose.offline_record import add_record, last_record
from loop.compose.offline_watch import WatchedArchive
from loop.contracts import (
    Death,
    Evaluation,
    EvaluationTask,
    Plan,
    PolicyFaults,
    Quantiles,
    ReplicaSpec,
    Resources,
    RunResult,
    Score,
    ServingStats,
    WindowResult,
)
from loop.runner.lineage import Lineage, LineageNode, read_lineage
from loop.runner.lineage_page import lineage_page
from loop.runner.lineage_picture import draw_lineage
from loop.runner.results import WindowInfo
from loop.runner.window_picture import Series, draw_windows
from strategy.baselines import load_baseline
from strategy.evolve.source import make_source

BASE = load_baseline("least_loaded").as_source()


@pytest.mark.parametrize("count", range(1, 60))
def test_a_split_uses_each_window_once_and_holds_out_the_last_ones(count: int) -> None:
    s = split(count)
    assert sorted((*s.train, *s.validation, *s.held_out)) == list(range(count))
    assert s.train
    assert all(h > max(*s.train, *s.validation, 0) for h in s.held_out)
    assert bool(s.held_out) == (count > 1)
    assert bool(s.validation) == (count > 3)
    assert len(s.train) >= len(s.validation)


@pytest.mark.parametrize(
    ("said", "idle", "left", "last", "why"),
    [
        ("incumbent kept; deadline near", 0, 10, True, ""),
        ("incumbent kept; deadline near", 1, 10, True, OVER),
        ("incumbent kept; deadline near", 1, 10, False, ""),
        ("incumbent kept; deadline near", 3, 10, False, "incumbent kept; deadline near"),
        ("incumbent kept; budget of evaluations spent", 1, 10, True, SPENT),
        ("incumbent kept; budget of evaluations spent", 1, 1000, False, ""),
        ("incumbent kept; the synthesiser has no more ideas", 1, 10, False, "incumbent kept; the synth"),
        ("incumbent kept; the synthesiser has no more ideas", 2, 1000, False, ""),
        ("incumbent kept; the synthesiser has no more ideas", 3, 1000, False, "incumbent kept; the synth"),
    ],
)
def test_a_search_tells_why_it_ended(said: str, idle: int, left: int, last: bool, why: str) -> None:
    told = why_end(said, idle, left, last=last)
    assert told.startswith(why)
    assert bool(told) == bool(why)


def test_policies_come_once_each_under_names_of_their_own(tmp_path: Path) -> None:
    texts = {
        "a/mine.py": BASE.source,
        "b/mine.py": BASE.source,
        "c/mine.py": BASE.source.replace("4.0", "4.5"),
    }
    paths = []
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
        paths.append(str(tmp_path / name))
    found = find_policies([*paths, "least_loaded", paths[0], "least_loaded"])
    assert [p.digest == BASE.digest for p in found] == [True, True, False, True]
    first, second, third, trusted = (p.name for p in found)
    assert (first, second, trusted) == (f"mine-{BASE.digest[:6]}", paths[1], "least_loaded")
    assert third == f"mine-{found[2].digest[:6]}"


def test_a_dataclass_of_options_is_folded_into_a_command() -> None:
    app, seen = typer.Typer(), []

    @dataclass(frozen=True)
    class Size:
        width: Annotated[int, typer.Option("--width", min=1, help="In metres.")]
        names: Annotated[list[str] | None, typer.Option("--name")] = None

    def measure(what: str, size: Size, twice: Annotated[bool, typer.Option()] = False) -> None:
        """Measure it."""
        seen.append((what, size, twice))

    measure.__annotations__ |= {"size": Size, "twice": Annotated[bool, typer.Option()], "what": str}
    app.command()(folded(measure))
    run = CliRunner().invoke
    assert run(app, ["desk", "--width", "3", "--name", "a", "--name", "b", "--twice"]).exit_code == 0
    assert run(app, ["--width", "1", "bed"]).exit_code == 0
    assert seen == [("desk", Size(3, ["a", "b"]), True), ("bed", Size(1), False)]
    assert run(app, ["desk"]).exit_code == 2
    assert run(app, ["desk", "--width", "0"]).exit_code == 2
    told = run(app, ["--help"]).output
    assert all(word in told for word in ("Measure it.", "In metres.", "--twice"))


def test_code_differences_tell_constants_from_code() -> None:
    mine = replace(BASE, name="mine", source=BASE.source.replace("TAIL = 4.0", "TAIL = 6.5"))
    found = code_difference(mine, BASE)
    assert {f.function: f.how for f in found.functions} == {
        "should_replan": "same",
        "plan": "same",
        "route": "other constants",
        "priority": "same",
    }
    (constant,) = found.constants
    assert (constant.name, constant.mine, constant.theirs) == ("TAIL", "6.5", "4.0")
    assert constant.meaning.startswith("how far outputs run on")
    assert any("TAIL = 6.5, not 4.0" in line for line in in_words(found, "mine", "least_loaded"))


def test_a_changed_helper_counts_as_other_code_of_what_uses_it() -> None:
    changed = BASE.source.replace("loads(obs), keep(obs)", "loads(obs), ()")
    assert changed != BASE.source
    found = code_difference(replace(BASE, source=changed), BASE)
    assert [f.function for f in found.functions if f.how == "other code"] == ["should_replan", "plan"]


def test_comments_docstrings_and_layout_are_no_difference() -> None:
    same = BASE.source.replace('"""First come, first served within a tier."""', '"""As they come."""  # well')
    found = code_difference(replace(BASE, source=same), BASE)
    assert all(f.how == "same" for f in found.functions)
    assert found.constants == ()


def window(index: int, requests: int = 100, prompt: float = 100.0, *events: str) -> WindowInfo:
    return WindowInfo(index, 10.0 * index, requests, prompt, 50.0, events)


def test_dynamics_are_told_against_the_median_window() -> None:
    told = dynamics([window(0), window(1), window(2, 200), window(3, 40), window(4, 100, 300.0, "n1 down")])
    assert told == [("usual",), ("usual",), ("burst",), ("calm",), ("long prompts", "n1 down")]


STATS = ServingStats(100, 0, 0, 1000, 1000, Quantiles(), Quantiles(), Quantiles(), 90, 0, 0, 0)


def run_of(*totals: float, p99_s: float = 1.0, moves: int = -1) -> RunResult:
    """A run whose windows take so long; `moves`: the window with another plan."""
    stats = replace(STATS, ttft_s=Quantiles(100, p99_s, p99_s, p99_s, p99_s))
    windows = []
    for i, total in enumerate(totals):
        plan = Plan((ReplicaSpec("m", ("a" if i < moves or moves < 0 else "b",)),), "better layout")
        windows.append(
            WindowResult(i, total, total, 0.0, 0.0, 0.0, i == moves, "d", plan, stats, Resources(total))
        )
    return RunResult("d", tuple(windows), stats, Resources(sum(totals)), PolicyFaults())


def judged(mine: RunResult, theirs: RunResult, *ratios: float) -> tuple[str, str]:
    """The judgement, and all its words."""
    infos = [window(i) for i in range(len(mine.windows))]
    windows = pair(mine, theirs, infos, Objective.TIME)
    worlds = [[replace(w, mine=w.theirs * ratio) for w in windows] for ratio in ratios]
    found = verdict("mine", "base", windows, worlds, mine, theirs, Objective.TIME)
    return found.judgement, " ".join(found.words)


def test_a_verdict_claims_no_more_than_was_measured() -> None:
    base = run_of(100.0, 110.0, 90.0, 105.0)
    steady = run_of(90.0, 98.0, 82.0, 94.0)
    assert judged(steady, base, 0.9, 0.95)[0] == "better"
    assert judged(steady, base)[0] == "probably better"  # in one world only
    assert judged(steady, base, 0.9, 1.1)[0] == "mixed"
    one_lucky = run_of(60.0, 111.0, 91.0, 106.0)
    assert judged(one_lucky, base, 0.9)[0] == "probably better"  # one window made the sum
    assert judged(base, base, 1.0)[0] == "no difference"
    assert judged(base, steady, 1.1)[0] == "worse"
    judgement, words = judged(run_of(90.0, 98.0, 82.0, 94.0, p99_s=2.0), base, 0.9)
    assert judgement == "better"
    assert "TTFT p99 is 100% longer" in words


def test_pairs_know_who_replanned_and_sum_up_by_dynamics() -> None:
    infos = [window(0), window(1), window(2, 300, 100.0, "n1 down")]
    windows = pair(run_of(10.0, 10.0, 5.0, moves=2), run_of(10.0, 10.0, 20.0), infos, Objective.TIME)
    assert [w.replanned for w in windows] == [False, False, True]
    assert by_dynamics(windows) == [
        ("usual", 2, 1.0),
        ("burst", 1, 0.25),
        ("an event of the hardware", 1, 0.25),
    ]
    assert gain([0.5, 2.0]).ratio == pytest.approx(1.0)
    assert gain([0.9]).high == float("inf") or gain([0.9]).high > 1e100


def test_evolve_says_when_a_gain_does_not_hold_elsewhere() -> None:
    side = Side(1, 1, 1, 0, 0, 1, 1, 1, 1, 0)

    def told(**ratios: float) -> str:
        return evolve_verdict([Comparison(p, 1, side, side, r) for p, r in ratios.items()], "b", "a")

    assert "holds on everything" in told(**{"train": 0.9, "held-out": 0.95, "hidden world 1": 0.9})
    assert "not on all" in told(**{"train": 0.9, "held-out": 0.95, "hidden world 1": 1.1})
    assert "does NOT hold" in told(**{"train": 0.5, "held-out": 1.05})
    assert "not known" in told(train=0.9)
    assert "not compared further" in told()


def test_tidy_adds_a_docstring_and_changes_nothing_else() -> None:
    assert tidy(BASE) == BASE.source
    bare = BASE.source[BASE.source.index("from ") :]
    policy = make_source(
        bare.replace("\n", "   \n", 1), parents=(BASE.digest,), operator="llm", note='a """quick"""'
    )
    assert tidy(policy).startswith("\"\"\"A '''quick'''.\"\"\"\n\nfrom strategy.policy_api import (\n")
    assert tidy(policy).endswith(bare)


def test_ranges_are_short() -> None:
    assert ranges((0, 1, 2, 5, 7, 8)) == "0-2, 5, 7-8"
    assert ranges(()) == ""


def test_the_last_record_of_an_archive_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    with WatchedArchive(path) as book:
        assert last_record(path) is None
        add_record(path, {"seed": 0}, "aaa", "aaa")
        add_record(path, {"seed": 0}, "aaa", "bbb")
        book.add(BASE, "n", 1)
        book.add_outcome(BASE.digest, Death.WORSE, "", 1)
        assert book.watch.deaths == {Death.WORSE: 1}
    found = last_record(path)
    assert found is not None
    assert (found.setting, found.first, found.champion) == ({"seed": 0}, "aaa", "bbb")


def family(count: int, seed: int = 0) -> Lineage:
    """A random family of `count` policies; the last one that lives is the champion."""
    rng = random.Random(seed)
    nodes: list[LineageNode] = []
    for i in range(count):
        parents = (
            tuple(dict.fromkeys(rng.choice(nodes).digest for _ in range(1 + (i % 7 == 0)))) if i > 3 else ()
        )
        death = str(rng.choice(list(Death))) if i > 3 and rng.random() < 0.75 else ""
        ratio = None if death == "static" else rng.uniform(0.8, 1.3)
        nodes.append(
            LineageNode(
                f"{i:012x}", f"p{i}", parents, "cma", "<why> & what", ratio, "full", death, "detail", False
            )
        )
    champion = next(n.digest for n in reversed(nodes) if not n.death)
    return Lineage(tuple(nodes), champion, "p0")


@pytest.mark.parametrize("count", [1, 5, 60, 600])
def test_a_lineage_shows_everybody_once_and_nobody_on_top_of_another(count: int) -> None:
    lineage = family(count)
    root = ET.fromstring(draw_lineage(lineage, "A <title>"))  # noqa: S314 - our own text
    marks = [e for e in root.iter() if e.get("data-digest")]
    assert sorted(e.get("data-digest", "") for e in marks) == [n.digest for n in lineage.nodes]
    places = [
        (float(c.get("cx", "")), float(c.get("cy", "")), float(c.get("r", "")))
        for e in marks
        for c in e.iter("{http://www.w3.org/2000/svg}circle")
    ]
    assert len(places) == count
    width, height = (float(root.get(side, "")) for side in ("width", "height"))
    assert all(r <= x <= width - r and r <= y <= height - r for x, y, r in places)
    places.sort()
    for i, (x, y, r) in enumerate(places):
        for x2, y2, r2 in places[i + 1 :]:
            if x2 - x > 20:
                break
            assert (x2 - x) ** 2 + (y2 - y) ** 2 >= (r + r2) ** 2 * 0.99
    bold = [e for e in root.iter() if e.get("class") == "edge path"]
    assert len(bold) == len(lineage.path) - 1


def test_a_lineage_page_carries_its_data_safely() -> None:
    lineage = family(30)
    evil = replace(lineage.nodes[5], note="</script><script>alert(1)</script>", name="<b>")
    page = lineage_page(replace(lineage, nodes=(*lineage.nodes[:5], evil, *lineage.nodes[6:])), "t")
    assert page.count("<script") == 2
    assert (
        "alert(1)</script>"
        not in page.replace("&lt;", "<").split("<script id='data'")[1].split("</script>")[0]
    )


def test_a_lineage_is_read_from_an_archive_with_comparable_ratios() -> None:
    early, late = EvaluationTask((0, 1)), EvaluationTask((2, 3))

    def score(objective: float) -> Score:
        return Score(objective, objective, 1.0, 1.0, 1.0, 1.0, (objective,))

    a, b, c, other = (
        make_source(f"'''{name}'''\n", name=name, parents=parents)
        for name, parents in (("a", ()), ("b", ("A",)), ("c", ("B", "O")), ("o", ()))
    )
    b, c = replace(b, parents=(a.digest,)), replace(c, parents=(b.digest, other.digest))
    with WatchedArchive() as book:
        for policy in (a, b, other, c):
            book.add(policy, policy.name, 1)
        for policy, task, value in ((a, early, 100.0), (b, early, 50.0), (a, late, 10.0), (c, late, 9.0)):
            book.add_evaluation("full", task, Evaluation(policy.digest, score(value)), 1)
        book.add_outcome(b.digest, Death.OVERFIT, "lost", 1)
        book.add_outcome(c.digest, None, "promoted: 0.9", 1)
        whole = read_lineage(book)
        assert [n.ratio for n in whole.nodes] == [1.0, 0.5, None, 0.9]
        assert whole.champion == c.digest
        assert whole.path == {a.digest, b.digest, c.digest}
        assert whole.deaths() == {"overfit": 1}
        part = read_lineage(book, other.digest)
        assert {n.name for n in part.nodes} == {"o", "c", "b", "a"}  # its child, and that one's ancestors
        assert {n.name for n in read_lineage(book, b.digest).nodes} == {"a", "b", "c", "o"}


def test_windows_are_drawn_as_whole_xml_with_all_series() -> None:
    windows = [window(i, 100 + i, 100.0, *(("n<1> down",) if i == 2 else ())) for i in range(5)]
    series = [Series("a & b", (1.0, 2.0, 3.0, 4.0, 5.0)), Series("c", (0.0,) * 5)]
    root = ET.fromstring(draw_windows("t", windows, series, unit="s"))  # noqa: S314 - our own text
    texts = "".join(root.itertext())
    assert "a & b (15.0 in all)" in texts
    assert "n<1> down" in texts
    assert len([e for e in root.iter() if e.tag.endswith("polyline")]) == 2
