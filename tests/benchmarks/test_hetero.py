"""The pipeline of benchmarks.hetero gives the serial results on real units."""

from __future__ import annotations

import pytest

from benchmarks import hetero, hetero_work
from benchmarks.common import parse_options


def test_windows_cover_what_they_can_and_results_repeat() -> None:
    shared = hetero_work.weights(1)
    text = hetero_work.documents(1, 4000)
    tokens = hetero_work.tokenise(text)
    rows = hetero_work.embed(tokens, shared["table"])
    assert rows.shape == (len(tokens) // hetero_work.WINDOW, hetero_work.WIDTH)
    assert hetero_work.serially(text, shared) == hetero_work.serially(text, shared)


@pytest.mark.slow
def test_every_system_serves_the_stream() -> None:
    options = parse_options("hetero", "", ["--batches", "4", "--rounds", "1"], extend=hetero._extend)
    rows, targets = hetero.measure(options)
    by_case = {row["case"]: row for row in rows}
    for name, _, _ in hetero.SYSTEMS:
        assert 0.0 <= by_case[name]["idle_share"] < 1.0
        assert by_case[name]["moved_mb"] > 0.0 or by_case[name]["prefetch_hits"] == 1.0
    assert targets[0].value > 0.0
