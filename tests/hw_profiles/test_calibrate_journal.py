"""Journals made by the twin with known costs: the fit must find these costs again."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from execution.twin import Twin, WorldParameters
from hw_profiles import load_cluster, load_model
from hw_profiles.cli import app
from hw_profiles.performance import PerformanceModel
from hw_profiles.performance.calibrate.held import longest
from hw_profiles.performance.calibrate.rows import DataError
from hw_profiles.performance.calibrate.watched import Watched, calibrate_from_journal
from hw_profiles.performance.coefficients import Coefficients, StepFit
from hw_profiles.performance.files import read_coefficients, write_coefficients
from loop.compose.counterfactual import AsRecorded, compare, read_stretch, replay_in_twin
from loop.contracts import Memo, Plan, ReplicaSpec, Request, RequestRecord
from loop.journal import Journal
from loop.journal_serving import ServedReplica, ServedRequest, ServingJournal
from strategy.baselines import load_baseline

CLUSTER, KIND, MODEL = "local-2", "cpu-slot", "tiny-llama"
TRUE = StepFit(
    sizes=(1, 4, 16),
    sizes_s=(2e-3, 2.6e-3, 3.5e-3),
    per_kv_token_s=2e-7,
    per_prompt_s=5e-4,
    per_prompt_token_s=1.2e-5,
    per_pair_s=2e-9,
    first_token_s=1e-3,
    start_s=3.0,
    kv_capacity_tokens=65_536,
)
BASE = read_coefficients()


def truth(steps: StepFit = TRUE) -> PerformanceModel:
    known = BASE.of(KIND, "cpu")
    return PerformanceModel(
        replace(BASE, devices={**BASE.devices, KIND: replace(known, measured={MODEL: steps})})
    )


def requests(count: int, rate_per_s: float, *, seed: int = 0, inputs: float = 5.0) -> list[Request]:
    rng = random.Random(seed)
    at_s, found = 0.0, []
    for i in range(count):
        at_s += rng.expovariate(rate_per_s)
        lengths = max(4, int(rng.lognormvariate(inputs, 0.8))), max(1, int(rng.lognormvariate(3.2, 0.7)))
        found.append(Request(i, at_s, MODEL, *lengths))
    return found


def served(asked: Sequence[Request], *, jitter: float = 0.0, steps: StepFit = TRUE) -> list[RequestRecord]:
    """What the twin with these costs makes of them, on two replicas; their ids are 0 and 1."""
    topology = load_cluster(CLUSTER)
    records: list[RequestRecord] = []
    twin = Twin(
        topology=topology,
        models={MODEL: load_model(MODEL)},
        performance=truth(steps),
        sink=records.append,
        block_tokens=16,
        world=WorldParameters(jitter=jitter),
    )
    twin.use(load_baseline("least_loaded"), Memo())
    twin.apply(Plan(tuple(spec(name) for name in topology.devices)))
    twin.run_until(10.0)
    twin.submit([r._replace(arrival_s=r.arrival_s + 10.0) for r in asked])
    assert twin.run_until_idle()
    return sorted(records, key=lambda r: r.id)


def spec(device: str) -> ReplicaSpec:
    return ReplicaSpec(MODEL, (device,), max_num_seqs=32, max_num_batched_tokens=512)


def keep(path: Path, records: Sequence[RequestRecord], **config: str) -> Path:
    journal = ServingJournal(path, config={"cluster": CLUSTER, "block_tokens": 16, **config})
    numbers = sorted({r.replica for r in records})
    for number, device in zip(numbers, load_cluster(CLUSTER).devices, strict=False):
        journal.replica(ServedReplica(number, spec(device), "torch", -4.0, -1.0, kv_capacity_tokens=65_536))
    journal.requests(ServedRequest(r, str(r.id), 0, "p", r.output_tokens) for r in records)
    journal.close()
    return path


def calibrated(path: Path) -> tuple[Coefficients, Watched]:
    coefficients, (watched,) = calibrate_from_journal(path, BASE, date="2026-01-01")
    return coefficients, watched


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "journal.sqlite"
    return keep(path, served(requests(400, 60.0)))


@pytest.fixture(scope="module")
def found(journal: Path) -> tuple[Coefficients, Watched]:
    return calibrated(journal)


@pytest.mark.slow
def test_known_costs_are_found_again(found: tuple[Coefficients, Watched]) -> None:
    _, watched = found
    fit = watched.fit
    assert (watched.kind, watched.model, fit.engine) == (KIND, MODEL, "torch")
    for n in (1, 2, 4, 6):
        assert fit.size_s(n) == pytest.approx(TRUE.size_s(n), rel=0.08)
    assert fit.per_prompt_token_s == pytest.approx(TRUE.per_prompt_token_s, rel=0.25)
    prompt_s = fit.per_prompt_s + 200 * fit.per_prompt_token_s + 200 * 100 * fit.per_pair_s
    assert prompt_s == pytest.approx(5e-4 + 200 * 1.2e-5 + 200 * 100 * 2e-9, rel=0.08)
    assert fit.start_s == pytest.approx(3.0)
    assert fit.kv_capacity_tokens == 65_536


def test_contexts_are_added_up_where_attention_is_not_padded(found: tuple[Coefficients, Watched]) -> None:
    assert not found[1].fit.padded


PADDED = replace(TRUE, padded=True, per_kv_token_s=2e-6)


@pytest.mark.slow
def test_padded_attention_is_noticed_and_its_costs_are_found(tmp_path: Path) -> None:
    path = keep(tmp_path / "j.sqlite", served(requests(400, 35.0), steps=PADDED))
    _, watched = calibrated(path)
    fit = watched.fit
    assert fit.padded
    assert fit.per_kv_token_s == pytest.approx(PADDED.per_kv_token_s, rel=0.15)
    assert fit.size_s(2) == pytest.approx(PADDED.size_s(2), rel=0.1)
    assert watched.held_out.e2e < 0.03


@pytest.mark.slow
def test_a_coefficients_file_of_before_padding_was_known_is_read(
    found: tuple[Coefficients, Watched], tmp_path: Path
) -> None:
    path = tmp_path / "c.json"
    write_coefficients(found[0], path)
    data = json.loads(path.read_text())
    del data["devices"][KIND]["measured"][MODEL]["padded"]
    path.write_text(json.dumps(data))
    assert read_coefficients(path).devices[KIND].measured[MODEL].padded is False


def test_the_longest_on_board() -> None:
    rng = np.random.default_rng(3)
    begin = rng.uniform(0.0, 10.0, 200)
    end = begin + rng.exponential(0.3, 200)
    values = rng.uniform(-5.0, 5.0, 200)
    times = np.unique(np.concatenate([begin, end]))
    expected = [
        max((v for b, e, v in zip(begin, end, values, strict=True) if b <= t < e), default=0.0) for t in times
    ]
    assert longest(times, begin, end, values).tolist() == expected


def test_the_held_out_error_is_stated(found: tuple[Coefficients, Watched]) -> None:
    _, watched = found
    assert watched.held_out.requests >= 100
    assert watched.held_out.e2e < 0.02
    assert watched.fit.error == watched.held_out.e2e


@pytest.mark.slow
def test_noise_shows_in_the_held_out_error_and_not_in_the_costs(tmp_path: Path) -> None:
    path = keep(tmp_path / "j.sqlite", served(requests(500, 60.0), jitter=0.15))
    _, watched = calibrated(path)
    assert 0.01 < watched.held_out.e2e < 0.12
    assert watched.fit.size_s(2) == pytest.approx(TRUE.size_s(2), rel=0.12)


@pytest.mark.slow
def test_the_file_says_where_it_comes_from_and_keeps_the_rest(
    found: tuple[Coefficients, Watched], tmp_path: Path
) -> None:
    coefficients, watched = found
    write_coefficients(coefficients, tmp_path / "c.json.gz")
    again = read_coefficients(tmp_path / "c.json.gz")
    (entry,) = again.provenance["journals"]
    assert entry["journal"] == "journal.sqlite"
    assert entry["date"] == "2026-01-01"
    assert entry["held_out_e2e_median_error"] == pytest.approx(watched.held_out.e2e, rel=1e-4)
    assert again.devices["h100-sxm"] == BASE.devices["h100-sxm"]
    assert again.devices[KIND].measured[MODEL].sizes == watched.fit.sizes
    replica = PerformanceModel(again).replica(
        load_model(MODEL), [load_cluster(CLUSTER).devices["here-0/cpu0"]], 1, 1
    )
    assert replica.iteration_s(2, 400) == pytest.approx(
        watched.fit.size_s(2) + 400 * watched.fit.per_kv_token_s, rel=1e-3
    )
    assert replica.start_s == pytest.approx(3.0, rel=1e-3)


@pytest.mark.slow
def test_the_twin_predicts_another_load_from_the_fit(
    found: tuple[Coefficients, Watched], tmp_path: Path
) -> None:
    other = served(requests(300, 90.0, seed=5, inputs=5.4))
    path = keep(tmp_path / "j.sqlite", other)
    with ServingJournal(path) as journal:
        stretch = read_stretch(journal)
    performance = PerformanceModel(found[0])
    errors = compare(stretch, replay_in_twin(stretch, performance))
    assert errors.requests == 300
    assert errors.e2e_median < 0.05
    assert abs(errors.e2e_of_mean) < 0.1
    wrong = compare(stretch, replay_in_twin(stretch, truth(replace(TRUE, sizes_s=(4e-3, 5e-3, 7e-3)))))
    assert wrong.e2e_median > 0.3


def test_recorded_routes_are_kept(tmp_path: Path) -> None:
    path = keep(tmp_path / "j.sqlite", served(requests(100, 60.0)))
    with ServingJournal(path) as journal:
        stretch = read_stretch(journal)
    records = replay_in_twin(stretch, truth(), AsRecorded(stretch))
    went = {s.record.id: s.record.replica for s in stretch.requests}
    ids = sorted({r.replica for r in records})
    assert all(ids.index(r.replica) == went[r.id] for r in records)
    exact = compare(stretch, records)
    assert exact.e2e_median < 1e-6


def test_a_replica_on_two_devices_is_left_out(tmp_path: Path) -> None:
    path = keep(tmp_path / "j.sqlite", served(requests(100, 60.0)))
    with ServingJournal(path) as journal:
        devices = tuple(load_cluster(CLUSTER).devices)
        for number in (0, 1):
            journal._run = 1
            journal.replica(
                ServedReplica(number, replace(spec("x"), devices=devices, tp=2), "torch", -4.0, -1.0)
            )
    with pytest.raises(DataError, match="no replica of a single device"):
        calibrate_from_journal(path, BASE, date="2026-01-01")


# ---- what cannot be used -----------------------------------------------------------------------------------------------


def refused(path: Path, tmp_path: Path) -> str:
    """What the command says."""
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["calibrate", "--from-journal", str(path), "--out", str(out)])
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not out.exists()
    return done.stderr


def test_too_few_requests(tmp_path: Path) -> None:
    path = keep(tmp_path / "j.sqlite", served(requests(20, 60.0)))
    assert "20 finished requests" in refused(path, tmp_path)


def test_prompts_of_one_length(tmp_path: Path) -> None:
    same = [r._replace(input_tokens=100) for r in requests(100, 60.0)]
    assert "prompts of different lengths" in refused(keep(tmp_path / "j.sqlite", served(same)), tmp_path)


def test_one_request_at_a_time(tmp_path: Path) -> None:
    apart = [r._replace(arrival_s=5.0 * r.id) for r in requests(100, 60.0)]
    assert "traffic that comes and goes" in refused(keep(tmp_path / "j.sqlite", served(apart)), tmp_path)


def test_a_run_without_requests(tmp_path: Path) -> None:
    journal = ServingJournal(tmp_path / "j.sqlite", config={"cluster": CLUSTER})
    journal.replica(ServedReplica(0, spec("here-0/cpu0"), "torch", -4.0, -1.0))
    journal.close()
    assert "no served requests" in refused(tmp_path / "j.sqlite", tmp_path)


def test_a_journal_of_a_replay(tmp_path: Path) -> None:
    Journal(tmp_path / "j.sqlite", run="replay").close()
    assert "not the journal of a serving run" in refused(tmp_path / "j.sqlite", tmp_path)


def test_a_file_that_is_no_journal(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    path.write_text("no database")
    assert "cannot be read as a journal" in refused(path, tmp_path)
    assert "no such journal" in refused(tmp_path / "absent.sqlite", tmp_path)


def test_an_unknown_cluster(tmp_path: Path) -> None:
    path = keep(tmp_path / "j.sqlite", served(requests(100, 60.0)), cluster="nowhere")
    assert "nowhere" in refused(path, tmp_path)


def test_directory_or_journal_but_not_both(tmp_path: Path) -> None:
    for arguments in (["calibrate"], ["calibrate", str(tmp_path), "--from-journal", "x"]):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 2
        assert "one of the two" in done.stderr


@pytest.mark.slow
def test_the_command_writes_beside_the_journal(journal: Path) -> None:
    done = CliRunner().invoke(app, ["calibrate", "--from-journal", str(journal), "--date", "2026-01-01"])
    assert done.exit_code == 0, done.output
    assert "held out: " in done.stdout
    written = read_coefficients(journal.parent / "coefficients.json.gz")
    assert MODEL in written.devices[KIND].measured
