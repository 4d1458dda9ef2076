from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from loop.contracts import PolicyFaults, PolicySource, Resources, RunResult
from loop.journal import EvolutionRecord
from loop.runner.report import policy_diff, render, write_report
from loop.runner.results import ExperimentResult, SystemKind, SystemResult, WindowInfo, saving
from loop.runner.table import final_table, headline
from tests.loop.test_journal import result as window

FIRST = PolicySource("first", "A = 1\nB = 2\n", "d1")
LAST = PolicySource("last", "A = 3\nB = 2\n", "d2", ("d1",), "cma", "A was <too> small")


def run(scale: float) -> RunResult:
    windows = tuple(
        replace(window(i), total_s=scale * 3, serving_s=scale * 2.0, policy="d1" if i < 2 else "d2")
        for i in range(4)
    )
    return RunResult("d2", windows, windows[0].stats, Resources(3600.0, 1e6, 1.0), PolicyFaults())


def experiment() -> ExperimentResult:
    return ExperimentResult(
        title="volatile <hour>",
        workload="w",
        generated=True,
        cluster="c",
        models=("m",),
        mode="batch",
        seed=0,
        windows=tuple(
            WindowInfo(i, 0.0, 10, 100.0, 20.0, ("h100-0 down",) if i == 1 else ()) for i in range(4)
        ),
        systems=(
            SystemResult("slow", SystemKind.BASELINE, run(2.0)),
            SystemResult("fast", SystemKind.BASELINE, run(1.25)),
            SystemResult("evolving", SystemKind.EVOLVING, run(1.0)),
            SystemResult("oracle", SystemKind.ORACLE, run(0.8)),
        ),
        first=FIRST,
        last=LAST,
        policies=(FIRST, LAST),
        evolution=(EvolutionRecord(2, "d1", "d2", "better", {"deaths": {"worse": 7}}),),
        requests=40,
    )


@pytest.mark.slow
def test_the_page_is_self_contained_and_tells_the_story(tmp_path: Path) -> None:
    path = write_report(experiment(), tmp_path / "deep" / "report.html")
    page = path.read_text()
    assert list(path.parent.iterdir()) == [path]
    assert not re.search(r"""<(script|link|img)[^>]+(src|href)\s*=""", page)
    assert "volatile &lt;hour&gt;" in page
    assert "A was &lt;too&gt; small" in page
    assert "generated workload" in page
    for text in ("+A = 3", "-A = 1", "worse 7", "h100-0 down", "+50.0%", "+20.0%"):
        assert text in page, text


def test_the_table_and_the_headline_compare_with_rivals_but_not_with_the_oracle() -> None:
    outcome = experiment()
    ours = outcome.system(SystemKind.EVOLVING)
    assert ours is not None
    assert [round(saving(ours, s), 3) for s in outcome.rivals] == [0.5, 0.2]
    text = headline(outcome)
    assert "20.0% less than the best of 2 rivals (fast)" in text
    assert "35.0% less than them on average" in text
    assert "25.0% away" in text
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(final_table(outcome))
    table = console.export_text()
    assert "generated workload" in table
    names = [line.split()[1] for line in table.splitlines() if line.startswith("│")]
    assert names == ["slow", "fast", "evolving", "oracle"]


def test_a_diff_of_equal_policies_is_empty() -> None:
    assert policy_diff(FIRST, FIRST) == []
    assert any(line == "+A = 3" for line in policy_diff(FIRST, LAST))
    assert "nothing that evolution tried" in render(replace(experiment(), last=FIRST))
