"""The control side of a live run: perceive, ask the policy, act, journal, at each monitoring point, in a thread.

It is the controller of the replays, on the real clock, with evolution beside it in another process. Whatever goes wrong
here, the data side serves on with the policy and the plan that it has.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import structlog

from execution.replicas.plane import LivePlane, PlaneClosedError, Reading, Served
from execution.replicas.prefixes import BLOCK_TOKENS
from loop.compose.experiment import baseline_source
from loop.compose.objective import Objective, window_value
from loop.compose.scoring import FALLBACK
from loop.compose.serving_body import Body
from loop.compose.serving_config import ServingConfig
from loop.compose.serving_data import DataSide
from loop.compose.serving_evolution import EvolutionProcess
from loop.compose.serving_policies import evolver_spec, load_policy
from loop.compose.serving_world import ServingWorld
from loop.contracts import (
    Memo,
    Plan,
    Policy,
    PolicySource,
    ReplayMode,
    Slo,
    WindowResult,
)
from loop.contracts.live import LiveState
from loop.controller import Controller, ControllerConfig
from loop.guard import GuardConfig, GuardedPolicy, plan_problems
from loop.journal import EvolutionRecord
from loop.journal_serving import EngineSample, ServedRequest, ServedTelemetry, ServingJournal
from loop.perception import Perception
from loop.runner.evolution import BackgroundEvolution
from loop.runner.serving_policy import DuplexPolicy
from loop.runner.serving_status import ServingStatus
from loop.runner.serving_windows import LiveSource, WindowBook, live_windows
from strategy.baselines import load_baseline
from strategy.live import FILE_NAME, Live, LiveStore

_log = structlog.get_logger(__name__)

JOURNAL_FILE = "journal.sqlite"
ARCHIVE_FILE = "archive.sqlite"


@dataclass(slots=True)
class _Loop:
    """What the controller's thread has, once it runs."""

    plane: LivePlane
    controller: Controller
    source: LiveSource


class ControlSide:
    """Everything that decides."""

    def __init__(
        self,
        config: ServingConfig,
        world: ServingWorld,
        first: PolicySource,
        status: ServingStatus,
        out: Path,
        *,
        fresh: bool = False,
    ) -> None:
        """Open journal and store, and load the policy that serves first: the champion of the run that went before in
        this folder, unless this one is to begin `fresh`.

        Raises:
            PolicyFault: the first policy cannot be loaded.
            JournalError, LiveStoreError: a file in `out` cannot be used.
        """
        self._config = config
        self._world = world
        self._status = status
        self._out = out
        self._data: DataSide | None = None
        self._body: Body | None = None
        self._memo = Memo()
        self._loop: _Loop | None = None
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._process: EvolutionProcess | None = None
        self._background: BackgroundEvolution | None = None
        self._first_policy: Policy | None = None
        self.windows = 0
        self.failure = ""
        """Why the loop ended before it was told to; empty: it did not."""
        self.store = LiveStore.begin(out / FILE_NAME) if fresh else LiveStore(out / FILE_NAME)
        self.store.attend()
        before = self.store.load()
        self.went_on = before is not None
        self.first = before.champion if before is not None else first
        self.journal = ServingJournal(out / JOURNAL_FILE, config={"kind": "serving"}, lenient=True)
        self._perception = Perception(
            tuple(world.world.models),
            world.world.options,
            slo=self._slo,
            mode=ReplayMode.ONLINE,
            window_s=config.window_s,
            ahead=lambda: self._body.ahead() if self._body is not None else (),
        )
        self._book = WindowBook()
        try:
            self._first_policy = load_policy(self.first)
        except BaseException:
            self.close()
            raise
        status.champion = f"{self.first.name} ({self.first.digest})"
        status.window_s = config.window_s

    @property
    def _slo(self) -> Slo:
        return Slo(self._config.slo_ttft_s, self._config.slo_tpot_s)

    @property
    def policy(self) -> Policy:
        """What serves first."""
        if self._first_policy is None:
            raise RuntimeError("the first policy was not loaded")
        return self._first_policy

    # -- before serving ----------------------------------------------------------------------------------

    def first_plan(self, data: DataSide) -> Plan:
        """What the first policy wants deployed; the fallback's plan where it wants nothing feasible."""
        obs = self._perception.observe(data.before_the_first_plan(), tick=0)
        guarded = GuardedPolicy(self.policy, load_baseline(FALLBACK))
        plan = guarded.plan(obs, self._config.budget_s, self._memo)
        for example in guarded.faults.examples:
            self._status.happened(f"the first plan is the fallback's: {example}")
        return plan

    def start(self, plane_of: Callable[[ControlSide], LivePlane], data: DataSide) -> None:
        """Begin to decide; returns at once, `wait_ready` waits for the first decision's policy to be in place."""
        self._data = data
        self._body = data.body
        plane = plane_of(self)
        self._background = self._evolution()
        self._thread = threading.Thread(target=self._drive, args=(plane,), name="controller", daemon=True)
        self._thread.start()

    def wait_ready(self, limit_s: float = 60.0) -> bool:
        """Wait until the first policy routes; False: it took longer."""
        return self._ready.wait(limit_s)

    # -- what the plane tells, in the controller's thread ------------------------------------------------

    def served(self, served: tuple[Served, ...]) -> None:
        """Requests that are over."""
        for s in served:
            self._perception(s.record)
            self._book.over(s.workload, s.record.finish)
            if self._loop is not None:
                self._loop.source.finished(s.record)
        self.journal.requests(
            ServedRequest(
                s.record,
                s.request_id,
                s.workload.tier,
                s.policy,
                s.max_tokens,
                s.workload.block_hashes,
            )
            for s in served
        )

    def read(self, readings: tuple[Reading, ...]) -> None:
        """Counters of engines."""
        self.journal.samples(EngineSample(r.at_s, r.replica, r.stats) for r in readings)

    @property
    def perception(self) -> Perception:
        """Hears of arrivals."""
        return self._perception

    def look(self) -> None:
        """Now and then: look at the devices, and write what happened to replicas, on the run's clock."""
        data = self._data
        if data is None or data.dispatcher is None:
            return
        origin_s = data.dispatcher.origin_s
        if self._body is not None:
            self._body.look(data.load)
        while data.replica_news:
            news = data.replica_news.popleft()
            self.journal.replica(
                replace(
                    news,
                    started_s=news.started_s - origin_s,
                    ready_s=None if news.ready_s is None else news.ready_s - origin_s,
                    ended_s=None if news.ended_s is None else news.ended_s - origin_s,
                )
            )
        while data.event_news:
            event = data.event_news.popleft()
            self.journal.event(replace(event, at_s=event.at_s - origin_s))

    # -- the end -----------------------------------------------------------------------------------------

    def join(self, limit_s: float) -> bool:
        """Wait for the last window to be closed; False: it took longer."""
        if self._thread is None:
            return True
        self._thread.join(limit_s)
        return not self._thread.is_alive()

    @property
    def evolution_pid(self) -> int | None:
        """Of the process of evolution."""
        return self._process.pid if self._process is not None else None

    def close(self) -> None:
        """End evolution and policies, and close the files; idempotent."""
        if self._background is not None:
            self._background.close()
        if self._process is not None:
            self._process.close()
        if isinstance(self._first_policy, DuplexPolicy):
            self._first_policy.close()
        self.look()  # the last replicas end after the loop
        self.store.close()
        self.journal.close()

    # -- the thread --------------------------------------------------------------------------------------

    def _drive(self, plane: LivePlane) -> None:
        try:
            controller = self._controller(plane)
            self._ready.set()
            windows = live_windows(self._config.window_s, lambda: plane.stopping)
            for result in controller.steps(windows):
                self._ended(result)
        except PlaneClosedError:
            pass  # the event loop has ended: so does this
        except Exception as error:  # noqa: BLE001 - whatever it is, serving goes on
            self.failure = f"{type(error).__name__}: {error}"
            self._status.happened(f"the loop has stopped, serving goes on as it is: {self.failure}")
            _log.error("the controller failed", exc_info=True)
        finally:
            self._ready.set()
            self.journal.finish()

    def _controller(self, plane: LivePlane) -> Controller:
        config = self._config
        assert self._background is not None  # noqa: S101 - made by `start`
        source = LiveSource(
            self._background,
            self._book,
            origin_s=lambda: controller.origin_s,
            open_requests=plane.open_requests,
        )
        controller = Controller(
            plane,
            self.policy,
            load_baseline(FALLBACK),
            self._perception,
            ControllerConfig(
                mode=ReplayMode.ONLINE,
                budget_s=config.budget_s,
                stuck_after_s=config.drain_s,
                warm_start=False,
                guard=GuardConfig(config.reject_share),
                real_time=True,
            ),
            journal=self.journal,
            source=source,
        )
        self._loop = _Loop(plane, controller, source)
        self.journal.began(self._told(plane))
        self._write_telemetry(0)
        return controller

    def _write_telemetry(self, tick: int) -> None:
        """What the devices showed up to a tick, and what is expected of them."""
        data, body = self._data, self._body
        if body is not None and data is not None and data.dispatcher is not None:
            seen = body.window(data.dispatcher.origin_s)
            self.journal.telemetry(ServedTelemetry(tick, seen, body.forecasts()))

    def _ended(self, result: WindowResult) -> None:
        """A window is over."""
        self.windows += 1
        self._write_telemetry(result.index + 1)
        assert self._loop is not None and self._background is not None  # noqa: S101, PT018
        if result.index == 0:
            self.journal.began(self._told(self._loop.plane, self._loop.controller.origin_s))
        background, status = self._background, self._status
        status.window_ended(result, background.now)
        live = background.live
        status.champion = f"{live.champion.name} ({live.champion.digest})"
        state = self._state()
        challenger = state.challenger if state is not None else None
        status.on_trial = (
            f"{challenger.name} ({challenger.digest}), {state.challenger_stage}"
            if challenger and state
            else ""
        )
        if not live.evolving:
            status.evolution = "rests (strategy status)"
        elif self._process is not None:
            status.evolution = self._process.status

    def _state(self) -> LiveState | None:
        live = self._background.live if self._background is not None else None
        return live.state if isinstance(live, Live) else None

    # -- evolution ---------------------------------------------------------------------------------------

    def _evolution(self) -> BackgroundEvolution:
        config = self._config
        baseline = baseline_source(FALLBACK)
        self.journal.policy(self.first)
        live = Live(
            self.first,
            load_policy,
            config.evolution.live(),
            guard=GuardedPolicy,
            check=plan_problems,
            baseline=baseline,
            trusted={baseline.digest: load_policy(baseline), self.first.digest: self.policy},
            store=self.store,
            waits=False,
        )
        if config.evolution.enabled:
            self._process = EvolutionProcess(
                evolver_spec(config, self._world, self.first, self._slo, self._out / ARCHIVE_FILE)
            )
        process = self._process
        background = BackgroundEvolution(
            self.first,
            process.step if process is not None else None,
            load_policy,
            journal=self.journal,
            on_step=self._stepped,
            live=live,
            counterfactual=process.counterfactual if process is not None else None,
            objective=lambda result: window_value(result, Objective.GOODPUT),
            waits=False,
            keep_windows=config.evolution.keep_windows,
        )
        if process is not None:
            process.past = lambda: background.past
            process.now = lambda: background.now
        self._status.evolution = process.status if process is not None else "off"
        return background

    def _stepped(self, record: EvolutionRecord) -> None:
        if record.champion is None:
            if record.reason.startswith("the step failed"):
                self._status.happened(f"tick {record.tick}: evolution: {record.reason}")
            return
        self._status.promotions += 1
        self._status.happened(f"tick {record.tick}: {record.champion} serves now: {record.reason}")

    def _told(self, plane: LivePlane, origin_s: float | None = None) -> dict[str, Any]:
        """What stands in the journal of this run."""
        spec, config = self._world.world.spec, self._config
        told: dict[str, Any] = json.loads(config.model_dump_json())
        return {
            "kind": "serving",
            "began_unix_s": time.time() - plane.now_s,
            "origin_s": origin_s,
            "cluster": spec.cluster,
            "profiles": list(spec.models),
            "coefficients": spec.coefficients,
            "start_scale": spec.parameters.start_scale,
            "served": [asdict(m) for m in self._world.models],
            "block_tokens": BLOCK_TOKENS,
            "window_s": config.window_s,
            "slo": asdict(self._slo),
            "seed": config.seed,
            "config": told,
        }
