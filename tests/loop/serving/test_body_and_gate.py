"""A live run's body and gate: devices in metrics, journal and words; plans through physical's gate."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from loop.cli import root
from loop.compose.serving import ServingSession
from loop.compose.serving_body import Body, Load
from loop.compose.serving_config import ServingConfigError, TelemetryConfigSection, load_serving_config
from loop.compose.serving_gate import GATE_FILE, ReplicaActuator, ReplicaGate
from loop.compose.serving_world import build_serving_world
from loop.contracts import Plan, PlanError, ReplicaSpec
from loop.journal_serving import ServingJournal
from physical.gate import GateRules
from physical.gate.journal import read_records
from tests.loop.serving.test_session import ask, run, session, until
from tests.physical.telemetry import fake

LEFT, RIGHT = "here-0/cpu0", "here-0/cpu1"


def plan_file(folder: Path, *devices: str) -> str:
    path = folder / "plan.yaml"
    replicas = [{"model": "tiny-llama", "devices": [device], "max_num_seqs": 4} for device in devices]
    path.write_text(json.dumps({"actions": [{"kind": "deploy", "replicas": replicas}]}))
    return str(path)


@pytest.mark.slow
def test_devices_are_in_the_metrics_the_journal_and_the_explanation(tmp_path: Path):
    async def act(made: ServingSession, client: httpx.AsyncClient) -> None:
        assert (await ask(client)).status_code == 200
        await until(lambda: made.status.tick >= 2 and bool(made.status.machine))
        await until(lambda: made._body is not None and made._body.outlook is not None)
        at = made.status.tick
        await until(lambda: made.status.tick >= at + 2)  # and felt
        page = (await client.get("/metrics")).text
        assert 'autopoiesis_device_memory_total_bytes{device="local-0/cpu0"}' in page
        assert f'autopoiesis_device_available{{device="{LEFT}"}} 1' in page
        assert "autopoiesis_telemetry_cpu_ratio" in page

    run(session(tmp_path), act)
    with ServingJournal(tmp_path / "journal.sqlite") as journal:
        kept = journal.served_telemetry()
        assert [entry.tick for entry in kept[:3]] == [0, 1, 2]
        host = next(d for entry in kept for d in entry.seen.devices)
        assert dict(host.figures)["memory_total_bytes"].minimum > 0
        ends = [(entry.seen.began_s, entry.seen.ended_s) for entry in kept]
        assert all(before[1] == after[0] for before, after in itertools.pairwise(ends))
        decisions = list(journal.decisions())
        felt = [dict(d.observation.signals) for d in decisions]
        assert any("memory_pressure_ahead" in signals for signals in felt)
        decided = {
            d.tick for d in decisions
        }  # a window in which the sampler never had its turn shows nothing
        tick = next(entry.tick for entry in kept if entry.seen.devices and entry.tick in decided)
    said = CliRunner().invoke(
        root, ["loop", "explain", str(tick), "--journal", str(tmp_path / "journal.sqlite")]
    )
    assert said.exit_code == 0
    assert any(line.startswith("seen: local-0/cpu0: ") and " GB" in line for line in said.stdout.splitlines())


@pytest.mark.slow
def test_without_telemetry_nothing_is_watched(tmp_path: Path):
    async def act(made: ServingSession, client: httpx.AsyncClient) -> None:
        await until(lambda: made.status.tick >= 1)
        assert "autopoiesis_device_available" not in (await client.get("/metrics")).text

    run(session(tmp_path, telemetry={"enabled": False}), act)
    with ServingJournal(tmp_path / "journal.sqlite") as journal:
        assert journal.served_telemetry() == []
    assert (
        CliRunner()
        .invoke(root, ["loop", "explain", "0", "--journal", str(tmp_path / "journal.sqlite")])
        .exit_code
        == 0
    )


def test_the_first_plan_of_a_file_passes_the_gate_and_a_dry_run_keeps_it(tmp_path: Path):
    async def act(made: ServingSession, client: httpx.AsyncClient) -> None:
        assert [line.devices for line in made.status.replicas] == [(RIGHT,)]
        await until(lambda: any("dry-run: would start" in h.text for h in made.status.happenings))
        assert [line.devices for line in made.status.replicas] == [(RIGHT,)]
        assert (await ask(client)).status_code == 200

    out = tmp_path / "out"
    out.mkdir()
    report = run(session(out, plan=plan_file(tmp_path, RIGHT), gate={"dry_run": True}), act)
    assert (report.finished, report.failure) == (1, "")
    events = [r["event"] for r in read_records(out / GATE_FILE)]
    assert events == ["begin", "before", "after", "end"]  # of the first plan, and of no other
    with ServingJournal(out / "journal.sqlite") as journal:
        kinds = [e.kind for e in journal.served_events()]
        assert "deployed" in kinds
        assert "dry-run" in kinds


def test_plans_are_deployed_undone_and_refused_by_the_gate(tmp_path: Path):
    one, other = (ReplicaSpec("tiny-llama", (device,), max_num_seqs=4) for device in (LEFT, RIGHT))
    told: list[tuple[str, str]] = []

    async def act(made: ServingSession, client: httpx.AsyncClient) -> None:
        data = made._data
        assert data is not None
        made._plane.stop()  # type: ignore[union-attr] # the controller decides nothing meanwhile
        actuator = ReplicaActuator(data.manager, asyncio.get_running_loop(), made.world.fits)
        rules = GateRules(max_share_stopped=1.0, min_running=1)
        gate = ReplicaGate(actuator, tmp_path / "g.jsonl", rules, tell=lambda *said: told.append(said))

        async def deploy(*replicas: ReplicaSpec) -> None:
            await asyncio.to_thread(gate.deploy, Plan(replicas, "a test"))
            await data.manager.settled()

        await deploy(one, other)
        await deploy(other)
        assert [line.devices for line in data.lines()] == [(RIGHT,)]
        assert (await ask(client)).status_code == 200
        for wrong, why in (
            ((), "floor"),
            ((ReplicaSpec("tiny-llama", ("here-0/cpu9",)),), "no device 'here-0/cpu9'"),
        ):
            with pytest.raises(PlanError, match=why):
                await deploy(*wrong)
        assert [line.devices for line in data.lines()] == [(RIGHT,)]

    run(session(tmp_path), act)
    assert [kind for kind, _ in told] == ["deployed", "deployed", "refused", "refused"]
    records = list(read_records(tmp_path / "g.jsonl"))
    assert [r["outcome"] for r in records if r["event"] == "end"] == ["applied"] * len(
        [r for r in records if r["event"] == "begin"]
    )
    assert sum(r["event"] == "refused" for r in records) == 2


@pytest.mark.parametrize("text", [None, "models: [", "models: []"])
def test_a_plan_that_cannot_be_read_is_a_plain_error(tmp_path: Path, text: str | None):
    path = tmp_path / "plan.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ServingConfigError, match=r"plan: .*plan\.yaml"):
        session(tmp_path / "out", plan=str(path))


@pytest.mark.slow
def test_waiting_work_is_forecast_and_felt(tmp_path: Path):
    config = load_serving_config(None, {"engine": "simulated", "slots": 2})
    world = build_serving_world(config, tmp_path)
    body = Body(TelemetryConfigSection(), world, (), slo_wait_s=1.0)
    body.start()
    try:
        load = Load(waiting=50, arrived=60, served=10)
        while body.outlook is None:
            body.look(lambda: load)
        assert {f.quantity for f in body.outlook.forecasts} >= {"queue", "memory_bytes"}
        assert all(-1.0 <= value <= 0.0 for _, value in body.ahead())
        assert "memory" in body.in_words()
        assert {f.horizon_s for f in body.forecasts()} == {30.0}
    finally:
        body.close()


@pytest.mark.slow  # real threads, a process of its own
@pytest.mark.skipif(fake.library() is None, reason="no C compiler to build the fake driver library with")
def test_a_lost_gpu_and_a_throttled_one_are_shown_to_whoever_plans(tmp_path: Path):
    state = fake.Machine(tmp_path / "state").path
    done = fake.run_python(["-m", "tests.loop.serving.body_on_gpus", str(tmp_path)], state)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["devices"] == {
        "virtual-0/gpu0": [True, 1.0],
        "virtual-0/gpu1": [False, 1.0],
        "virtual-0/gpu2": [True, 0.5],
        "virtual-0/gpu3": [True, 1.0],
    }
    assert any(text.startswith("virtual-0/gpu1: lost") for text in seen["told"])
    assert "virtual-0/gpu1 lost" in seen["words"]
    figures = {(name, labels.get("device")): value for name, labels, value in seen["metrics"]}
    assert figures["autopoiesis_device_available", "virtual-0/gpu1"] == 0
    assert figures["autopoiesis_device_temperature_celsius", "virtual-0/gpu0"] == 55
    assert figures["autopoiesis_device_throttled", "virtual-0/gpu2"] == 1
    assert {"virtual-0/gpu0", "virtual-0/gpu2"} <= {d["device"] for d in seen["window"]["devices"]}


def test_what_another_server_left_half_done_ended_with_it(tmp_path: Path):
    left = [
        {"event": "begin", "plan": "p", "at_s": 1.0, "mutations": [{"kind": "deploy", "replicas": []}]},
        {"event": "before", "plan": "p", "place": 0, "at_s": 1.0, "token": "p-0"}
        | {
            "state": {
                "server": "another",
                "replicas": [{"model": "gone", "devices": ["x/cpu0"]}],
                "reason": "",
            }
        },
    ]
    (tmp_path / GATE_FILE).write_text("".join(json.dumps(record) + "\n" for record in left))

    async def act(made: ServingSession, client: httpx.AsyncClient) -> None:
        assert (await ask(client)).status_code == 200

    assert run(session(tmp_path), act).finished == 1
    ends = [r["outcome"] for r in read_records(tmp_path / GATE_FILE) if r["event"] == "end"]
    assert ends[:2] == ["undone: cut off", "applied"]
