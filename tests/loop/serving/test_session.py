"""A whole live run in one process: the real gateway, dispatcher, controller and journal over simulated engines."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from execution.engines.registry import build_engine
from loop.compose import serving_policies
from loop.compose.experiment import baseline_source
from loop.compose.serving import ServingReport, ServingSession
from loop.compose.serving_config import load_serving_config
from loop.compose.serving_data import StartError
from loop.compose.serving_evolution import EvolutionProcess
from loop.compose.serving_world import ServedModel, build_serving_world
from loop.contracts import CommandKind, CommandStatus, Engine, EngineError, EngineSpec, Finish, Stage
from loop.journal_serving import ServingJournal
from loop.runner.evolution import EvolutionStep, PastWindow
from loop.runner.serving_status import ServingStatus
from strategy.evolve.sandbox import SandboxLimits
from strategy.live import FILE_NAME, LiveStore
from tests.loop.live_world import edited

LIMIT_S = 300.0
Act = Callable[[ServingSession, httpx.AsyncClient], Awaitable[None]]


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy elsewhere for a moment does not look like a policy that hangs."""
    monkeypatch.setattr(serving_policies, "LIMITS", SandboxLimits(route_s=30.0, max_kills=10))


def in_process(spec: EngineSpec, _model: ServedModel) -> Engine:
    return build_engine(replace(spec, options={**spec.options, "answer_tokens": 0.0}))


def session(
    out: Path, build: Callable[[EngineSpec, ServedModel], Engine] = in_process, **flags: object
) -> ServingSession:
    told = {
        "engine": "simulated",
        "slots": 2,
        "window_s": 0.3,
        "port": 0,
        "options": {"time_scale": 0.02},
        "evolution": {"enabled": False, "shadow_windows": 0, "canary": "none"},
        **flags,
    }
    config = load_serving_config(None, told)
    return ServingSession(
        config, build_serving_world(config, out), baseline_source("round_robin"), out, build=build
    )


def run(made: ServingSession, act: Act) -> ServingReport:
    """Serve, do something, and stop."""

    async def whole() -> ServingReport:
        serving = asyncio.create_task(made.serve())
        while not made.url:
            await asyncio.sleep(0.01)
            if serving.done():
                return serving.result()
        async with httpx.AsyncClient(base_url=made.url, timeout=LIMIT_S) as client:
            await act(made, client)
        made.stop()
        return await serving

    return asyncio.run(asyncio.wait_for(whole(), LIMIT_S))


async def ask(
    client: httpx.AsyncClient, tokens: int = 6, text: str = "Hello there, how are you?"
) -> httpx.Response:
    body = {"model": "tiny-llama", "prompt": text, "max_tokens": tokens}
    return await client.post("/v1/completions", json=body)


async def until(what: Callable[[], bool]) -> None:
    while not what():
        await asyncio.sleep(0.01)


def test_requests_are_served_journaled_and_seen_at_monitoring_points(tmp_path: Path):
    async def act(made: ServingSession, client: httpx.AsyncClient) -> None:
        answers = await asyncio.gather(*(ask(client, 4 + i) for i in range(6)))
        assert [a.status_code for a in answers] == [200] * 6
        assert [a.json()["usage"]["completion_tokens"] for a in answers] == [4, 5, 6, 7, 8, 9]
        assert (await ask(client, text="x" * 4000)).status_code == 400
        at = made.status.tick
        await until(lambda: made.status.tick >= at + 2)
        assert len((await client.get("/v1/models")).json()["data"]) == 1
        assert "autopoiesis_policy_info" in (await client.get("/metrics")).text

    report = run(session(tmp_path), act)
    assert (report.finished, report.failed, report.cut, report.failure) == (6, 0, 0, "")
    with ServingJournal(tmp_path / "journal.sqlite") as journal:
        served = list(journal.served())
        assert [s.record.finish for s in served] == [Finish.OK] * 6
        assert sorted(s.record.output_tokens for s in served) == [4, 5, 6, 7, 8, 9]
        assert {s.policy for s in served} == {baseline_source("round_robin").digest}
        assert {s.record.replica for s in served} == {0, 1}
        assert all(len(s.block_hashes) == s.record.input_tokens // 16 for s in served)
        ticks = list(journal.decisions())
        assert len(ticks) == report.windows
        assert sum(t.result.stats.finished for t in ticks if t.result is not None) == 6
        # not of the last one alone: its history is eight windows long, and a slow machine takes longer
        assert sum(d.arrived for t in ticks for d in t.observation.demand) == 6
        assert [r.ended for r in journal.served_replicas()] == ["stopped", "stopped"]
        config = journal.config()
        assert config["window_s"] == 0.3
        assert 0.0 <= config["origin_s"] < served[0].record.arrival_s
        assert all(finished for _, _, finished in journal.runs())


@pytest.mark.slow
def test_an_operator_promotes_kills_and_revives_while_requests_go_on(tmp_path: Path):
    policy = edited("to_the_last", "route", "return len(replicas) - 1")

    async def act(made: ServingSession, client: httpx.AsyncClient) -> None:
        with LiveStore(tmp_path / FILE_NAME) as store:
            statuses: list[int] = []

            async def order(kind: CommandKind) -> None:
                number = store.order(kind, policy if kind is CommandKind.PROMOTE else None)
                while store.command(number).status is CommandStatus.PENDING:
                    statuses.append((await ask(client)).status_code)
                assert store.command(number).status is CommandStatus.DONE

            await order(CommandKind.PROMOTE)
            assert "to_the_last" in (await client.get("/metrics")).text
            for _ in range(4):
                statuses.append((await ask(client)).status_code)
            await order(CommandKind.ROLLBACK)
            await order(CommandKind.KILL)
            await order(CommandKind.REVIVE)
            assert set(statuses) == {200}
            await until(lambda: "least_loaded" in made.status.champion)

    report = run(session(tmp_path), act)
    assert report.failed == 0
    with ServingJournal(tmp_path / "journal.sqlite") as journal:
        by_policy: dict[str, set[int]] = {}
        for s in journal.served():
            by_policy.setdefault(s.policy, set()).add(s.record.replica)
        assert len(by_policy[policy.digest]) == 1  # it did route
        assert [r.kind for r in journal.live()].count("command") == 4


@pytest.mark.slow
def test_a_run_goes_on_with_the_champion_of_the_one_before(tmp_path: Path):
    policy = edited("to_the_last", "route", "return len(replicas) - 1")

    async def promote(made: ServingSession, client: httpx.AsyncClient) -> None:
        with LiveStore(tmp_path / FILE_NAME) as store:
            number = store.order(CommandKind.PROMOTE, policy)
            await until(lambda: store.command(number).status is CommandStatus.DONE)

    async def look(made: ServingSession, client: httpx.AsyncClient) -> None:
        assert made.went_on
        assert policy.digest in made.status.champion
        await ask(client)

    run(session(tmp_path), promote)
    report = run(session(tmp_path), look)
    assert policy.digest in report.champion
    with ServingJournal(tmp_path / "journal.sqlite") as journal:
        assert journal.serving_runs() == [1, 2]
        assert [s.policy for s in journal.served()] == [policy.digest]


@pytest.mark.slow
def test_what_is_in_flight_finishes_when_it_stops_and_nothing_new_is_let_in(tmp_path: Path):
    answers: list[httpx.Response] = []

    async def act(made: ServingSession, client: httpx.AsyncClient) -> None:
        asking = asyncio.create_task(ask(client, 400))
        await until(lambda: made.status.in_flight == 1)
        made.stop()
        await until(lambda: made.status.phase != "serving")
        late = await ask(client)
        answers.extend([await asking, late])

    report = run(session(tmp_path, options={"time_scale": 0.5}), act)
    assert [a.status_code for a in answers] == [200, 503]
    assert answers[0].json()["usage"]["completion_tokens"] == 400
    assert (report.finished, report.cut) == (1, 0)


@pytest.mark.slow
def test_a_model_that_does_not_come_up_ends_the_run_with_the_reason(tmp_path: Path):
    def broken(_spec: EngineSpec, _model: ServedModel) -> Engine:
        raise EngineError("no such weights")

    made = session(tmp_path, broken)
    with pytest.raises(StartError, match=r"tiny-llama.*no such weights"):
        run(made, lambda *_: asyncio.sleep(0))
    assert made.status.phase == "stopped"


@pytest.mark.slow
def test_serving_goes_on_when_the_loop_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise ValueError("out of figures")

    async def act(made: ServingSession, client: httpx.AsyncClient) -> None:
        monkeypatch.setattr(ServingStatus, "window_ended", fail)
        await until(lambda: any("out of figures" in h.text for h in made.status.happenings))
        assert (await ask(client)).status_code == 200

    report = run(session(tmp_path), act)
    assert report.failure == "ValueError: out of figures"
    assert report.finished == 1


@pytest.mark.slow
def test_a_proven_policy_is_tried_in_shadow_and_canary_on_live_traffic_and_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """All but the proof in the twin, whose process is tested by itself: here it is as good as done."""
    policy = edited("to_the_first", "route", "return 0")
    proven: list[int] = []

    def step(_self: object, _incumbent: object, past: tuple[PastWindow, ...], _stop: object) -> EvolutionStep:
        proven.append(len(past[-1].window.requests))
        if len(proven) > 1:
            return EvolutionStep(None, "nothing better")
        return EvolutionStep(policy, "proven elsewhere", gain=0.2)

    monkeypatch.setattr(EvolutionProcess, "step", step)
    monkeypatch.setattr(EvolutionProcess, "counterfactual", lambda *_: {})

    async def act(made: ServingSession, client: httpx.AsyncClient) -> None:
        going = True
        bad: list[int] = []

        async def traffic() -> None:
            while going:
                answer = await ask(client, 3)
                bad.extend([answer.status_code] if answer.status_code != 200 else [])

        clients = [asyncio.create_task(traffic()) for _ in range(4)]
        await until(lambda: policy.digest in made.status.on_trial)
        await until(lambda: not made.status.on_trial)
        going = False
        await asyncio.gather(*clients)
        assert not bad

    careful = {
        "shadow_windows": 1,
        "canary": "traffic",
        "canary_share": 0.5,
        "canary_min_windows": 1,
        "canary_max_windows": 3,
    }
    report = run(session(tmp_path, evolution=careful, window_s=1.0), act)  # each window has its requests
    assert report.failed == 0
    assert proven[0] > 0
    with ServingJournal(tmp_path / "journal.sqlite") as journal:
        steps = [r for r in journal.live() if r.policy == policy.digest and r.kind == "stage"]
        assert [r.after for r in steps[:2]] == [Stage.SHADOW, Stage.CANARY]
        # as good as the champion: which way it goes is chance, that it was compared is not
        assert steps[2].after in (Stage.PROMOTED, Stage.REFUSED)
        assert steps[2].evidence["pairs"] > 0
        assert steps[2].evidence["faults"] == 0
        assert report.promotions == (steps[2].after is Stage.PROMOTED)
