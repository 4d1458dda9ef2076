"""Keeps one replica of the plan alive: starts it, watches over it, restarts it, and ends it when it is told to."""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import Any, Protocol

import structlog

from execution.replicas.events import ReplicaEventKind
from execution.replicas.options import ManagerOptions
from execution.replicas.patience import answered
from execution.replicas.process import ProcessWatch
from execution.replicas.replica import Replica
from loop.contracts import EngineError, EngineLimits, ReplicaSpec, ReplicaStage

_log = structlog.get_logger(__name__)


class Crew(Protocol):
    """What a supervisor asks of the manager."""

    options: ManagerOptions

    def now_s(self) -> float:
        """The clock."""

    async def claim(self, supervisor: Supervisor) -> None:
        """Wait until its devices are its own."""

    def open(self, spec: ReplicaSpec) -> Replica:
        """Build a replica with an engine that has not started. May raise anything that a factory raises."""

    def shut(self, replica: Replica) -> None:
        """It holds no devices any more."""

    def tell(self, kind: ReplicaEventKind, spec: ReplicaSpec, replica: Replica | None, reason: str) -> None:
        """Something has happened."""

    def lost(self, replica: Replica, reason: str) -> None:
        """It is dead: nothing more is sent to it."""

    def changed(self) -> None:
        """The set of replicas, or the stage of one, is another now."""

    def gave_up(self, supervisor: Supervisor) -> None:
        """It will not come up any more."""

    def departed(self, supervisor: Supervisor) -> None:
        """It has ended all that it had: its devices are for others."""


class Course(Enum):
    """What a supervisor is doing."""

    CLAIMING = "claiming"  # waits for its devices
    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    STOPPING = "stopping"  # too late to stay
    RESTING = "resting"  # between a death and the restart
    OVER = "over"


class Supervisor:
    """One replica of one plan. Runs as a task of its own from construction on. `doubted`: it was given up lately, and
    gets one attempt only."""

    def __init__(self, spec: ReplicaSpec, rank: int, crew: Crew, *, doubted: bool = False) -> None:
        self.spec = spec
        """As the plan wants it now; batch limits may be in force a moment later."""
        self.rank = rank
        """Position in the plan."""
        self.course = Course.CLAIMING
        self.replica: Replica | None = None
        self.displaced: tuple[ReplicaSpec, ...] = ()
        """Of the old plan, what goes for this one."""
        self.retiring = False
        """Not of the plan any more: a death is no reason to restart."""
        loop = asyncio.get_running_loop()
        self.settled: asyncio.Future[bool] = loop.create_future()
        """True: it serves; False: it ended before it did. Anew after each death."""
        self._crew = crew
        self._deaths = crew.options.max_deaths - 1 if doubted else 0
        self._leaving = False
        self._ordered: asyncio.Future[None] = loop.create_future()
        """Done at the next order; another one stands here then."""
        self._resizing = asyncio.Lock()
        self._task = asyncio.create_task(self._run(), name=f"replica {spec.model} {spec.devices}")
        self._task.add_done_callback(self._over)

    @property
    def serves(self) -> bool:
        """It takes requests."""
        stays = self.course is Course.SERVING and not self._leaving
        return stays and self.replica is not None and self.replica.ready

    # -- orders ------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Drain and stop; what has not served yet is stopped at once."""
        self.retiring = True
        if self.course in (Course.SERVING, Course.DRAINING):
            self._leaving = True
            self._wake()
        elif self.course is not Course.STOPPING:
            self._task.cancel()

    def stay(self) -> bool:
        """Go on as if it had never been told to leave; False: too late."""
        if self.course not in (Course.SERVING, Course.DRAINING):
            return False
        self.retiring = self._leaving = False
        self._wake()
        return True

    def end(self) -> asyncio.Task[None]:
        """Stop now, whatever is in flight; returns the task that does."""
        self.retiring = True
        self._task.cancel()
        return self._task

    async def resize(self) -> None:
        """Bring the batch limits that the plan wants now into force, live."""
        async with self._resizing:
            replica = self.replica
            while replica is not None and replica.ready and replica.spec != self.spec:
                wanted = self.spec
                try:
                    limit_s = self._crew.options.answer_limit_s
                    await answered(
                        replica.engine.set_limits(self._limits(wanted)), limit_s, lambda: replica.heard
                    )
                except (EngineError, ValueError, TimeoutError) as error:
                    words = f"batch limits not changed: {error}"
                    self._crew.tell(ReplicaEventKind.FAILED, wanted, replica, words)
                    return
                replica.spec = wanted
                replica.changed()
                self._crew.tell(ReplicaEventKind.RESIZED, wanted, replica, _limits_in_words(wanted))

    # -- life --------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            await self._live()
        except asyncio.CancelledError:
            pass  # told to leave before it served, or to end at once: this task has nobody who waits for more
        finally:
            self.course = Course.OVER
            if self.replica is not None:
                await self._stopped(self.replica, "")

    def _over(self, task: asyncio.Task[None]) -> None:
        """The task has ended, in whatever way; one that is cancelled before its first step never runs at all."""
        self.course = Course.OVER
        if not task.cancelled() and task.exception() is not None:
            _log.error("supervisor failed", model=self.spec.model, exc_info=task.exception())
        self._settle(served=False)
        self._crew.departed(self)

    async def _live(self) -> None:
        while True:
            self.course = Course.CLAIMING
            self._crew.changed()
            await self._crew.claim(self)
            failure = await self._start()
            if failure is None and self.replica is not None:
                failure = await self._serve(self.replica)
                if failure is None:
                    return
            if self.retiring:
                return
            if not await self._rest(failure or ""):
                self._settle(served=False)
                self._crew.gave_up(self)
                return

    async def _start(self) -> str | None:
        """Bring a process up; returns why it did not come up."""
        self.course = Course.STARTING
        options = self._crew.options
        try:
            replica = self._crew.open(self.spec)
        except Exception as error:  # noqa: BLE001 - a factory is foreign code: a replica less is no end of the rest
            return self._failed(None, f"cannot be built: {type(error).__name__}: {error}")
        self.replica = replica
        self._crew.tell(ReplicaEventKind.STARTED, self.spec, replica, "")
        self._crew.changed()
        try:
            async with asyncio.timeout(options.start_limit_s):
                await replica.engine.start()
            replica.info = replica.engine.info
        except TimeoutError:
            reason = f"not ready after {options.start_limit_s:g} s"
        except Exception as error:  # noqa: BLE001 - as above
            reason = f"{type(error).__name__}: {error}"
        else:
            return None
        self._failed(replica, reason)
        await self._buried(replica)
        return reason

    def _failed(self, replica: Replica | None, reason: str) -> str:
        self._crew.tell(ReplicaEventKind.FAILED, self.spec, replica, reason)
        return reason

    async def _serve(self, replica: Replica) -> str | None:
        """Until it is dead (returns why), or has drained away (None)."""
        crew = self._crew
        replica.stage = ReplicaStage.READY
        replica.ready_s = crew.now_s()
        replica.process = replica.pid
        replica.changed()
        self.course = Course.SERVING
        crew.tell(
            ReplicaEventKind.READY, self.spec, replica, f"after {replica.ready_s - replica.started_s:.2f} s"
        )
        self._settle(served=True)
        self.displaced = ()
        crew.changed()
        if replica.process is not None:
            replica.watch = ProcessWatch(
                replica.process, lambda: crew.lost(replica, f"process {replica.process} has ended")
            )
        reading = asyncio.create_task(self._read(replica), name=f"readings of replica {replica.id}")
        try:
            while True:
                await self.resize()
                if not self._leaving:
                    waits: set[asyncio.Future[Any]] = {self._ordered, replica.death}
                    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                if replica.death.done():
                    return await self._died(replica)
                if self._leaving and await self._drained(replica):
                    return None
        finally:
            reading.cancel()

    async def _died(self, replica: Replica) -> str:
        self.course = Course.RESTING
        self.settled = asyncio.get_running_loop().create_future()
        reason = replica.death.result()
        if (
            replica.ready_s is not None
            and self._crew.now_s() - replica.ready_s >= self._crew.options.healthy_s
        ):
            self._deaths = 0
        self._crew.tell(ReplicaEventKind.DIED, self.spec, replica, reason)
        await self._buried(replica)
        return reason

    async def _drained(self, replica: Replica) -> bool:
        """Let it finish what it holds, and stop it; False: it is to stay after all, or has died."""
        crew = self._crew
        self.course = Course.DRAINING
        replica.stage = ReplicaStage.DRAINING
        replica.changed()
        crew.tell(
            ReplicaEventKind.DRAINING, self.spec, replica, f"{replica.load.in_flight} requests in flight"
        )
        crew.changed()
        await self._idle(replica)
        if replica.death.done():
            return False
        if not self._leaving:
            self.course = Course.SERVING
            replica.stage = ReplicaStage.READY
            replica.changed()
            crew.tell(ReplicaEventKind.KEPT, self.spec, replica, "wanted again while it drained")
            crew.changed()
            return False
        self.course = Course.STOPPING
        left = replica.load.in_flight
        await self._stopped(replica, f"{left} requests go on elsewhere" if left else "")
        return True

    async def _idle(self, replica: Replica) -> None:
        """Until it holds nothing, or waiting for that is over."""
        clock = asyncio.get_running_loop().time
        idle, until_s = replica.idle(), clock() + self._crew.options.drain_limit_s
        while self._leaving and not idle.done() and not replica.death.done():
            left_s = until_s - clock()
            if left_s <= 0.0:
                return
            waits: set[asyncio.Future[Any]] = {idle, replica.death, self._ordered}
            await asyncio.wait(waits, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)

    async def _rest(self, reason: str) -> bool:
        """Wait before the next start; False: there is to be none."""
        options = self._crew.options
        self._deaths += 1
        if self._deaths >= options.max_deaths:
            words = f"{self._deaths} deaths in a row, the last because: {reason}"
            self._crew.tell(ReplicaEventKind.GAVE_UP, self.spec, None, words)
            return False
        pause_s = min(options.backoff_s * 2.0 ** (self._deaths - 1), options.max_backoff_s)
        self._crew.tell(
            ReplicaEventKind.RESTART, self.spec, None, f"in {pause_s:.2g} s, number {self._deaths} in a row"
        )
        self.course = Course.RESTING
        self._crew.changed()
        await asyncio.sleep(pause_s)
        return True

    # -- the process -------------------------------------------------------------------------------------

    async def _read(self, replica: Replica) -> None:
        """Read the engine's counters now and then; an engine that does not answer is dead."""
        options = self._crew.options
        while True:
            try:
                reading = await answered(
                    replica.engine.stats(), options.answer_limit_s, lambda: replica.heard
                )
                replica.read(reading)
            except TimeoutError:
                self._crew.lost(replica, f"hangs: no answer for {options.answer_limit_s:g} s")
                return
            except EngineError as error:
                self._crew.lost(replica, str(error))
                return
            await asyncio.sleep(options.poll_s)

    async def _buried(self, replica: Replica) -> None:
        """End what may be left of one that is dead."""
        replica.stage = ReplicaStage.DEAD
        self._crew.changed()
        await self._ended(replica)

    async def _stopped(self, replica: Replica, reason: str) -> None:
        if replica.stage is ReplicaStage.READY:
            replica.stage = ReplicaStage.DRAINING  # nothing more is sent to it
            self._crew.changed()
        await self._ended(replica)
        if replica.stage is not ReplicaStage.DEAD:
            replica.stage = ReplicaStage.STOPPED
            self._crew.tell(ReplicaEventKind.STOPPED, self.spec, replica, reason)

    async def _ended(self, replica: Replica) -> None:
        """Stop the engine, by force where it does not; then it holds nothing any more. No order to leave interrupts
        it: devices are free when it is done, not before."""
        ending = asyncio.create_task(self._end(replica), name=f"end of replica {replica.id}")
        interrupted = False
        while not ending.done():
            try:
                await asyncio.shield(ending)
            except asyncio.CancelledError:
                interrupted = True
        self.replica = None
        self._crew.shut(replica)
        self._crew.changed()
        if interrupted:
            raise asyncio.CancelledError

    async def _end(self, replica: Replica) -> None:
        limit_s = self._crew.options.stop_limit_s
        try:
            if replica.stage is ReplicaStage.DEAD:
                replica.kill()  # it may hang: nothing is asked of it
            for _ in range(2):
                try:
                    async with asyncio.timeout(limit_s):
                        await replica.engine.stop()
                except (TimeoutError, EngineError, OSError):
                    replica.kill()
                else:
                    return
        finally:
            replica.kill()
            replica.unwatch()

    def _limits(self, spec: ReplicaSpec) -> EngineLimits:
        return EngineLimits(spec.max_num_seqs, spec.max_num_batched_tokens, self._crew.options.max_waiting)

    def _wake(self) -> None:
        ordered, self._ordered = self._ordered, asyncio.get_running_loop().create_future()
        ordered.set_result(None)

    def _settle(self, *, served: bool) -> None:
        if not self.settled.done():
            self.settled.set_result(served)


def _limits_in_words(spec: ReplicaSpec) -> str:
    return f"max_num_seqs {spec.max_num_seqs}, max_num_batched_tokens {spec.max_num_batched_tokens}"
