"""`autopoiesis loop serve`: engines, gateway, controller and evolution as one process, and how it ends.

session = ServingSession(config, world, first_policy, out)
report = session.run(for_s=None)        # until SIGINT or SIGTERM
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from execution.engines.vllm.environment import interpreter
from execution.replicas.plane import LivePlane
from execution.replicas.remote import RemoteEngine
from loop.compose.scoring import FALLBACK
from loop.compose.serving_body import Body
from loop.compose.serving_config import ServingConfig
from loop.compose.serving_control import ControlSide
from loop.compose.serving_data import DataSide, EngineBuilder, access_tokens, ended_within
from loop.compose.serving_gate import GATE_FILE, GatedPlane, ReplicaActuator, ReplicaGate, plan_of_file
from loop.compose.serving_world import ServedModel, ServingWorld
from loop.contracts import Engine, EngineSpec, PolicySource
from loop.gateway import loop_factory
from loop.runner.serving_status import ServingStatus
from physical.gate import GateRules
from strategy.baselines import load_baseline

_log = structlog.get_logger(__name__)

_STATUS_S = 0.25
_CLOSE_S = 15.0
"""For engines to stop once nothing is in flight; beyond, they are killed."""
INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class ServingReport:
    """What came of a live run."""

    windows: int
    finished: int
    failed: int
    cancelled: int
    cut: int
    """Requests that were ended at the end, before their time."""
    promotions: int
    champion: str
    went_on: bool
    """It continued a run that had stopped."""
    failure: str = ""
    """Why the loop ended before serving did; empty: it did not."""


class ServingSession:
    """One live run. `status` can be read from anywhere meanwhile."""

    def __init__(
        self,
        config: ServingConfig,
        world: ServingWorld,
        first: PolicySource,
        out: Path,
        *,
        fresh: bool = False,
        build: EngineBuilder | None = None,
        on_ready: Callable[[ServingSession], None] = lambda _session: None,
    ) -> None:
        """Open files and load the first policy; see ControlSide for what may be raised, and ServingConfigError of a
        plan file. `build`: None is a process for each engine. `on_ready` is called once requests are accepted."""
        self._told_plan = plan_of_file(config.plan) if config.plan is not None else None
        self.config = config
        self.world = world
        self.out = out
        self.status = ServingStatus()
        self._build = build or remote_engine
        self._on_ready = on_ready
        self._control = ControlSide(config, world, first, self.status, out, fresh=fresh)
        self._data: DataSide | None = None
        self._plane: LivePlane | None = None
        self._body: Body | None = None
        self._stopping: asyncio.Event | None = None
        self._signals = 0
        self._cut = 0

    @property
    def url(self) -> str:
        """Of the gateway, once requests are accepted."""
        return self.status.url

    @property
    def went_on(self) -> bool:
        """It continues a run that had stopped."""
        return self._control.went_on

    @property
    def protected(self) -> bool:
        """Clients need a token."""
        return bool(access_tokens(self.config))

    def run(self, *, for_s: float | None = None) -> ServingReport:
        """Serve until a signal, `stop`, or for so many seconds; then end gracefully.

        Raises:
            PlanError, StartError: the first replicas did not come up.
            GatewayError, AccessError: the gateway cannot listen.
        """
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(self.serve(for_s=for_s, signals=True))

    def stop(self) -> None:
        """End gracefully. On the event loop."""
        if self._stopping is not None:
            self._stopping.set()

    async def serve(self, *, for_s: float | None = None, signals: bool = False) -> ServingReport:
        """As `run`, on the running event loop."""
        loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        if signals:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self._signalled, number)
        try:
            data = self._data = DataSide(self.config, self.world, self.status, self._build)
            data.body = self._body = self._watch(data)
            if await self._begin(data):
                self._on_ready(self)
                await self._serve(for_s)
        finally:
            await self._end()
            if signals:
                for number in (signal.SIGINT, signal.SIGTERM):
                    loop.remove_signal_handler(number)
        return self._report()

    # -- the course of it --------------------------------------------------------------------------------

    async def _begin(self, data: DataSide) -> bool:
        """The address, replicas, the loop, and then whoever asks; False: told to stop before that."""
        assert self._stopping is not None  # noqa: S101 - made by `serve`
        status, control = self.status, self._control
        gateway = await data.listen()
        status.phase = "the first policy makes its plan"
        plan = self._told_plan
        if plan is None:
            plan = await asyncio.to_thread(control.first_plan, data)
        status.phase = "engines start"
        gate = self._gate(data)
        deploying = asyncio.create_task(data.deploy(plan, gate))
        told = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({deploying, told}, return_when=asyncio.FIRST_COMPLETED)
            if not deploying.done():
                return False
            deploying.result()
        finally:
            for task in (deploying, told):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await deploying
        dispatcher = data.dispatch_by(load_baseline(FALLBACK))

        def plane_of(control: ControlSide) -> LivePlane:
            return GatedPlane(
                gate,
                data.manager,
                dispatcher,
                arrived=control.perception.arrived,
                served=control.served,
                read=control.read,
                look=control.look,
            )

        control.start(lambda c: self._keep(plane_of(c)), data)
        await asyncio.to_thread(control.wait_ready)
        data.open()
        status.url, status.phase = gateway.url, "serving"
        return True

    def _gate(self, data: DataSide) -> ReplicaGate:
        """What every plan passes."""
        told = self.config.gate
        rules = GateRules(
            changes_per_minute=told.changes_per_minute,
            max_share_stopped=told.max_share_stopped,
            min_running=told.min_running,
        )
        actuator = ReplicaActuator(data.manager, asyncio.get_running_loop(), self.world.fits)
        return ReplicaGate(
            actuator, self.out / GATE_FILE, rules, dry_run=told.dry_run, tell=data.told_by_gate
        )

    def _watch(self, data: DataSide) -> Body | None:
        """Begin to look at the devices; None: nobody wants it."""
        if not self.config.telemetry.enabled:
            return None
        loop = asyncio.get_running_loop()
        body = Body(
            self.config.telemetry,
            self.world,
            data.manager.devices,
            slo_wait_s=self.config.slo_ttft_s,
            see=lambda devices: _soon(loop, lambda: data.manager.see_devices(devices)),
            tell=self.status.happened,
        )
        body.start()
        return body

    def _keep(self, plane: LivePlane) -> LivePlane:
        self._plane = plane
        return plane

    async def _serve(self, for_s: float | None) -> None:
        assert self._stopping is not None  # noqa: S101 - made by `serve`
        deadline = None if for_s is None else asyncio.get_running_loop().time() + for_s
        while not self._stopping.is_set():
            self._show()
            left_s = (
                _STATUS_S
                if deadline is None
                else min(_STATUS_S, deadline - asyncio.get_running_loop().time())
            )
            if left_s <= 0:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._stopping.wait()

    async def _end(self) -> None:
        """Gateway, loop, engines, evolution, in this order; whatever fails, the rest is ended all the same."""
        status, data, plane = self.status, self._data, self._plane
        status.phase = "stopping"
        gateway = data.gateway if data is not None else None
        if gateway is not None and gateway.in_flight:
            status.happened(
                f"no new requests; {gateway.in_flight} in flight have {self.config.drain_s:g} s to finish "
                "(Ctrl-C again ends at once)"
            )
        if plane is not None:
            plane.stop()
        try:
            if gateway is not None:
                report = await gateway.stop()
                self._cut = len(report.cut)
            if plane is not None:
                plane.hurry()  # nothing is in flight any more, or it was cut
            joined = await asyncio.to_thread(self._control.join, _CLOSE_S)
            if not joined:
                _log.error("the controller does not end")
        finally:
            if data is not None and not await ended_within(data.manager, _CLOSE_S + self.config.drain_s):
                for pid in data.pids():
                    kill(pid)
            self._show()
            await asyncio.to_thread(self._control.close)
            if self._body is not None:
                await asyncio.to_thread(self._body.close)
            status.phase = "stopped"

    def _signalled(self, number: int) -> None:
        """The first signal ends gracefully, the second one at once."""
        self._signals += 1
        if self._signals == 1:
            self.status.happened(f"{signal.Signals(number).name}: stopping")
            self.stop()
            return
        for pid in (*(self._data.pids() if self._data is not None else ()), self._control.evolution_pid):
            kill(pid)
        sys.stdout.flush()
        sys.stderr.write("ended at once; requests in flight were cut\n")
        sys.stderr.flush()
        os._exit(INTERRUPTED)  # sandboxes and engines end with their parent

    # -- what is shown -----------------------------------------------------------------------------------

    def _show(self) -> None:
        data, status = self._data, self.status
        if data is None or data.dispatcher is None:
            return
        status.replicas = data.lines()
        status.machine = self._body.in_words() if self._body is not None else ""
        status.in_flight = data.dispatcher.pending
        counts: dict[str, int] = {}
        for (_, outcome), count in data.dispatcher.outcomes.items():
            counts[outcome] = counts.get(outcome, 0) + count
        status.finished, status.cancelled = counts.get("ok", 0), counts.get("cancelled", 0)
        status.failed = sum(counts.values()) - status.finished - status.cancelled

    def _report(self) -> ServingReport:
        status = self.status
        return ServingReport(
            self._control.windows,
            status.finished,
            status.failed,
            status.cancelled,
            self._cut,
            status.promotions,
            status.champion,
            self._control.went_on,
            self._control.failure,
        )


def remote_engine(spec: EngineSpec, model: ServedModel) -> Engine:
    """An engine in a process of its own."""
    environment = dict(model.environment)
    if spec.engine == "torch":
        environment.setdefault("OMP_NUM_THREADS", str(spec.options.get("threads", 1)))
    python = model.python or (interpreter() if spec.engine == "vllm" else sys.executable)
    return RemoteEngine(spec, python=python, env=environment)


def _soon(loop: asyncio.AbstractEventLoop, act: Callable[[], None]) -> None:
    """On the event loop, if it is still there."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(act)


def kill(pid: int | None) -> None:
    """SIGKILL, if it is there."""
    if pid:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
