from __future__ import annotations

from pathlib import Path

import pytest

from execution.workload import WorkloadError, describe, generate, profiles, sessions
from execution.workload import fit as fitting
from execution.workload.generators import from_fitted
from loop.contracts import Request


@pytest.mark.slow
def test_fitting_what_a_generator_made_finds_its_parameters() -> None:
    made = generate("mooncake-conversation", model="m", duration_s=3000.0, seed=2)
    again = fitting.fit_trace("again", made, bin_s=300.0, provenance={"source": "test"})
    original = profiles.packaged("mooncake-conversation").streams[0].sessions
    found = again.streams[0].sessions
    assert original is not None
    assert found is not None
    assert found.common_blocks == original.common_blocks == 1
    assert found.continues[0] == pytest.approx(original.continues[0], abs=0.03)
    assert found.keeps_all[2:6] == pytest.approx(original.keeps_all[2:6], abs=0.06)
    middle = len(found.think_s) // 2
    assert found.think_s[middle] == pytest.approx(original.think_s[middle], rel=0.12)


def test_turns_follow_block_hashes() -> None:
    rows = [(0, 1, 2), (0, 3), (0, 1, 2, 4), (0, 5), (0, 1, 2, 4, 6), (0, 1, 9)]
    requests = [Request(i, float(i), "m", 512 * len(b), 5, b) for i, b in enumerate(rows)]
    assert sessions.common_prefix(requests) == 1
    found = sessions.turns(requests, 1)
    assert [turn.parent for turn in found] == [None, None, 0, None, 2, 4]
    assert [turn.depth for turn in found] == [1, 1, 2, 1, 3, 4]
    assert [turn.shared_blocks for turn in found] == [0, 1, 3, 1, 4, 2]


@pytest.mark.slow
def test_a_directory_is_fitted_and_written(
    servegen_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    (data / "servegen" / "language").mkdir(parents=True)
    servegen_dir.rename(data / "servegen" / "language" / "m-large")
    monkeypatch.setattr(fitting, "SERVEGEN_START_S", 0.0)
    (fitted,) = fitting.fit_directory(data)
    assert [stream.name for stream in fitted.streams] == ["client-3", "client-12"]
    assert fitted.streams[1].arrivals.cv == 3.0
    assert fitted.streams[1].arrivals.rates_per_s[:3] == (0.0, 0.0, 2.0)
    path = profiles.write(fitted, tmp_path / "out")
    assert profiles.parse(path.read_text(), path.name) == fitted
    made = describe(from_fitted(fitted, model="m"))
    assert made.count == pytest.approx(fitted.statistics["count"], rel=0.05)


def test_a_directory_without_traces_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="holds none of"):
        list(fitting.fit_directory(tmp_path))


def test_a_trace_where_nothing_continues_has_no_sessions() -> None:
    requests = [Request(i, float(i), "m", 600, 5, (2 * i, 2 * i + 1)) for i in range(50)]
    with pytest.raises(WorkloadError, match="no sessions"):
        sessions.fit(requests, sessions.turns(requests, 0), 0, 512)


@pytest.mark.slow
def test_packaged_parameters_are_those_of_the_data(data_dir: Path) -> None:
    """The committed files are what `fit` writes today."""
    for fitted in fitting._mooncake(data_dir / "mooncake" / "conversation_trace.jsonl"):
        assert fitted == profiles.packaged(fitted.generator)
