"""The GPUs of this machine as a source of samples: polls them, follows those that come and go, tells events.

A device is known by its UUID. One that stops answering is lost; the library is then opened anew from time to time,
as it lists only what was there when it was opened, and a device that answers again has returned. Figures that a
device or a driver does not tell are dropped from the round for good, and stay NaN.

When a call into a driver does not come back, `abandon` lets another thread go on, which leaves the stalled device alone
until the call has returned (calls.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from loop.contracts.telemetry import EventKind, GpuIdentity, GpuProcess, GpuSample
from physical.telemetry.calls import WatchedCalls
from physical.telemetry.gpu import Gpu, Round
from physical.telemetry.nvml import Cause, Nvml, Refusal
from physical.telemetry.readings import Reading
from physical.telemetry.store import GPU_COLUMNS, EventLog, Ring, gpu_sample

DRIVER_LISTING: Final = Path("/proc/driver/nvidia/gpus")
"""What the kernel module knows: it changes when a device is plugged in or out."""
ROUNDS_S: Final = (0.5, 1.0, 10.0)
"""How often memory and clocks are read; counters; limits, MIG and processes."""
FIRST_RETRY_S, LONGEST_RETRY_S = 1.0, 30.0
_STABLE_S = 10.0
"""After so long, a library that was opened counts as working."""


class GpuSource:
    """All GPUs that NVML shows. `poll` once a tick; every answer is a sample or an event."""

    name = "gpus"

    def __init__(
        self,
        events: EventLog,
        *,
        node: str = "local-0",
        keep: int = 3000,
        period_s: float = 0.1,
        clock: Callable[[], float],
        library: Nvml | None = None,
        listing: Path = DRIVER_LISTING,
    ) -> None:
        self._events = events
        self._node = node
        self._keep = keep
        self._period_s = period_s
        self._clock = clock
        self._nvml = library or Nvml()
        self._calls = WatchedCalls(self._nvml)
        self._listing = listing
        self._gpus: dict[str, Gpu] = {}
        """By UUID. Replaced when it grows, so that readers in other threads never see it change."""
        self._missing: set[str] = set()
        self._listed: frozenset[str] = frozenset()
        self._listing_due_s = 0.0
        self._open_due_s: float | None = 0.0
        self._opened_s = 0.0
        self._retry_s = FIRST_RETRY_S
        self._outage: EventKind | None = None
        self._library_hung = False

    # --- for readers ---------------------------------------------------------------------------------------

    @property
    def identities(self) -> tuple[GpuIdentity, ...]:
        """Every device ever seen, by number."""
        return tuple(gpu.identity for gpu in self._gpus.values())

    def here(self, device: str) -> bool:
        """Does it answer at the moment?"""
        return any(gpu.here and not gpu.hung for gpu in self._gpus.values() if gpu.id == device)

    def ring(self, device: str) -> Ring:
        """The samples of a device. Raises KeyError for one that was never seen."""
        return next((gpu.ring for gpu in self._gpus.values() if gpu.id == device), None) or _unknown(device)

    def samples(self) -> tuple[GpuSample, ...]:
        """The newest sample of each device that answers."""
        found = []
        for gpu in self._gpus.values():
            last = gpu.ring.last()
            if gpu.here and not gpu.hung and last is not None:
                found.append(gpu_sample(gpu.id, *last, gpu.processes))
        return tuple(found)

    # --- for the thread that polls, and the one that watches it ---------------------------------------------

    @property
    def progress(self) -> int:
        """Grows with every call."""
        return self._calls.progress

    @property
    def doing(self) -> tuple[str, str] | None:
        """(device id, call) that is being asked now."""
        return self._calls.doing

    def poll(self, now_s: float) -> None:
        """Look at every device once.

        Raises:
            Superseded: a call hung in between and another thread polls now.
        """
        for device in self._calls.own():
            self._came_back(device, now_s)
        if self._library_hung:
            return
        if self._open_due_s is not None and now_s >= self._open_due_s:
            self._reopen(now_s)
        elif self._nvml.opened and now_s >= self._listing_due_s:
            self._listing_due_s = now_s + 1.0
            if self._driver_listing() != self._listed:
                self._reopen(now_s)
        for gpu in self._gpus.values():
            if gpu.here and not gpu.hung:
                if gpu.skip:
                    gpu.skip -= 1
                else:
                    self._poll_gpu(gpu, now_s)

    def abandon(self, now_s: float, stalled_s: float) -> bool:
        """A call has hung for `stalled_s`: let another thread go on without its device. False: nothing hangs."""
        doing = self._calls.abandon()
        if doing is None:
            return False
        device, call = doing
        self._library_hung = self._library_hung or not device
        for gpu in self._gpus.values():
            if gpu.id == device:
                gpu.hung = True
        self._events.add(EventKind.STALLED, device, now_s, call, stalled_s)
        return True

    def release(self) -> None:
        """The thread that polled ends; another may."""
        self._calls.release()

    def close(self) -> None:
        """Let the library go; not while a call hangs in it."""
        if self.doing is None and not self._library_hung and not self._any_hung():
            self._nvml.close()

    # --- one device -----------------------------------------------------------------------------------------

    def _poll_gpu(self, gpu: Gpu, now_s: float) -> None:
        """One row of one device."""
        began = self._clock()
        slack_s = 0.5 * self._period_s
        if not self._read_prepared(gpu, gpu.fast, now_s):
            return
        took_s = self._clock() - began
        if gpu.medium.due(now_s, slack_s) and not self._read_prepared(gpu, gpu.medium, now_s):
            return
        if gpu.slow.due(now_s, slack_s) and not (
            self._read_fields(gpu, now_s) and self._read(gpu, gpu.slow, gpu.slow.readings, now_s)
        ):
            return
        if gpu.rare.due(now_s, slack_s):
            if not self._read(gpu, gpu.rare, gpu.rare.readings, now_s):
                return
            self._read_processes(gpu)
        gpu.finish(now_s, took_s, self._period_s)
        if self._retry_s > FIRST_RETRY_S and self._open_due_s is None and now_s - self._opened_s > _STABLE_S:
            self._retry_s = FIRST_RETRY_S

    def _read_prepared(self, gpu: Gpu, calls: Round, now_s: float) -> bool:
        """What is asked often, by straight calls; the general way for those that fail or have to change.

        False when the device was lost on the way.
        """
        if calls.prepared is None:
            calls.prepared = [
                (r, self._nvml.prepare(r.calls[0], gpu.handle, r.arguments, r.answer), (gpu.id, r.calls[0]))
                for r in calls.readings
            ]
        watched, owner, row = self._calls, self._calls.owner, gpu.row
        failed: list[Reading] = []
        for reading, call, doing in calls.prepared:
            if call is None:
                failed.append(reading)
                continue
            watched.doing = doing
            watched.progress += 1
            code = call.function(*call.arguments)
            if watched.owner != owner:
                watched.end_superseded(gpu.id)
            if code:
                failed.append(reading)
            elif reading.take is None:
                row[reading.columns[0]] = call.target.value * reading.factor
            else:
                for column, value in zip(reading.columns, reading.take(call.target), strict=True):
                    row[column] = value
        watched.progress += 1
        watched.doing = None
        if failed:
            return self._read(gpu, calls, failed, now_s)
        if gpu.failing:
            gpu.failing -= {reading.calls[0] for reading in calls.readings}
        return True

    def _read(self, gpu: Gpu, calls: Round, readings: list[Reading], now_s: float) -> bool:
        """Ask some calls of a round and take their figures; False when the device was lost on the way."""
        for reading in tuple(readings):
            answer = self._calls.ask(gpu.id, reading.calls[0], gpu.handle, *reading.arguments)
            if not isinstance(answer, Refusal):
                gpu.take(reading, answer, now_s)
                gpu.failing.discard(reading.calls[0])
                continue
            gpu.forget(reading)
            if not self._refused(gpu, calls, reading, answer, now_s):
                return False
        return True

    def _read_fields(self, gpu: Gpu, now_s: float) -> bool:
        """The batched call; figures that the device has not are dropped, and asked for one by one if they can be."""
        if not gpu.fields:
            return True
        wanted = [(entry.id, entry.scope) for entry in gpu.fields]
        answer = self._calls.watched(
            gpu.id, "nvmlDeviceGetFieldValues", lambda: self._nvml.fields(gpu.handle, wanted)
        )
        if isinstance(answer, Refusal):
            if answer.cause in {Cause.LOST, Cause.LIBRARY}:
                return self._gone(gpu, answer, now_s)
            if answer.cause is Cause.TRANSIENT:
                return True
            self._note_missing(answer, now_s)
            answer = {entry.id: None for entry in gpu.fields}
        for entry in tuple(gpu.fields):
            if entry.id not in answer:
                continue
            value = answer[entry.id]
            if value is None:
                gpu.drop_field(entry)
            elif entry.rate:
                gpu.row[entry.column] = gpu.rate(entry.column, value * entry.factor, now_s)
            else:
                gpu.put(entry.column, value * entry.factor, now_s)
        return True

    def _read_processes(self, gpu: Gpu) -> None:
        answer = self._calls.ask(gpu.id, "nvmlDeviceGetComputeRunningProcesses", gpu.handle)
        if isinstance(answer, Refusal):  # a lost device is found out by the next fast call
            gpu.processes = ()
            return
        gpu.processes = tuple(
            GpuProcess(int(p.pid), None if p.usedGpuMemory is None else int(p.usedGpuMemory)) for p in answer
        )

    # --- what goes wrong ------------------------------------------------------------------------------------

    def _refused(self, gpu: Gpu, calls: Round, reading: Reading, refusal: Refusal, now_s: float) -> bool:
        """Deal with a call that was not answered; False when the device (or all) is gone."""
        if refusal.cause in {Cause.LOST, Cause.LIBRARY}:
            return self._gone(gpu, refusal, now_s)
        if refusal.cause is Cause.TRANSIENT:
            if refusal.call not in gpu.failing:
                gpu.failing.add(refusal.call)
                self._events.add(EventKind.CALL_FAILED, gpu.id, now_s, f"{refusal.call}: {refusal.text}")
            return True
        if calls is gpu.fast:  # a handle that is no longer valid answers like a figure that is not known
            confirmed = self._calls.ask(gpu.id, "nvmlDeviceGetUUID", gpu.handle)
            if isinstance(confirmed, Refusal):
                return self._gone(gpu, refusal, now_s)
        calls.prepared = None
        where = calls.readings.index(reading)
        if refusal.cause is Cause.MISSING and len(reading.calls) > 1:
            older = Reading(
                reading.calls[1:],
                reading.columns,
                reading.factor,
                reading.take,
                reading.arguments,
                reading.answer,
            )
            calls.readings[where] = older
            return self._read(gpu, calls, [older], now_s)
        self._note_missing(refusal, now_s)
        del calls.readings[where]
        return True

    def _note_missing(self, refusal: Refusal, now_s: float) -> None:
        if refusal.cause is Cause.MISSING and refusal.call not in self._missing:
            self._missing.add(refusal.call)
            self._events.add(EventKind.MISSING_SYMBOL, "", now_s, f"{refusal.call}: {refusal.text}")

    def _gone(self, gpu: Gpu, refusal: Refusal, now_s: float) -> bool:
        """The device is gone, or the driver with all devices."""
        if refusal.cause is Cause.LIBRARY:
            self._lose_all(EventKind.NO_DRIVER, refusal, now_s)
            self._calls.watched("", "nvmlShutdown", self._nvml.close)
        else:
            gpu.lose(refusal.text, now_s)
        self._retry_later(now_s)
        return False

    def _lose_all(self, kind: EventKind, refusal: Refusal, now_s: float) -> None:
        if self._outage is not kind:
            self._outage = kind
            self._events.add(kind, "", now_s, f"{refusal.call}: {refusal.text}")
        for gpu in self._gpus.values():
            gpu.lose(refusal.text, now_s)

    def _retry_later(self, now_s: float) -> None:
        """Open anew, later each time in a row."""
        if self._open_due_s is None or self._open_due_s <= now_s:
            self._open_due_s = now_s + self._retry_s
            self._retry_s = min(2.0 * self._retry_s, LONGEST_RETRY_S)

    def _came_back(self, device: str, now_s: float) -> None:
        """A call that hung has returned: its device is looked at again."""
        if not device:
            self._library_hung = False
            self._nvml.close()
            self._open_due_s = now_s
        for gpu in self._gpus.values():
            if gpu.id == device:
                gpu.hung = False
        self._events.add(EventKind.ANSWERING, device, now_s)

    def _any_hung(self) -> bool:
        return any(gpu.hung for gpu in self._gpus.values())

    # --- who is there ---------------------------------------------------------------------------------------

    def _reopen(self, now_s: float) -> None:
        """Open the library anew, and find every device by its UUID."""
        self._open_due_s = None
        if self._any_hung():  # the library is in use by the call that hangs
            self._retry_later(now_s)
            return
        self._listed = self._driver_listing()
        self._calls.watched("", "nvmlShutdown", self._nvml.close)
        refused = self._calls.watched("", "nvmlInit", self._nvml.open)
        if isinstance(refused, Refusal):
            absent = refused.cause is Cause.ABSENT
            self._lose_all(EventKind.NO_LIBRARY if absent else EventKind.NO_DRIVER, refused, now_s)
            self._retry_s = LONGEST_RETRY_S if absent else self._retry_s
            self._retry_later(now_s)
            return
        if self._outage is not None:
            self._outage = None
            self._events.add(EventKind.DRIVER_BACK, "", now_s)
        self._opened_s = now_s
        found = self._enumerate()
        for uuid, handle in found.items():
            self._greet(uuid, handle, now_s)
        for uuid, gpu in self._gpus.items():
            if uuid not in found:
                gpu.lose("no longer listed by the driver", now_s)
        if not all(gpu.here for gpu in self._gpus.values()):
            self._retry_later(now_s)

    def _enumerate(self) -> dict[str, Any]:
        """UUID -> handle of all that answer."""
        count = self._calls.ask("", "nvmlDeviceGetCount")
        found: dict[str, Any] = {}
        for index in range(0 if isinstance(count, Refusal) else count):
            handle = self._calls.ask("", "nvmlDeviceGetHandleByIndex", index)
            if isinstance(handle, Refusal):
                continue
            uuid = self._calls.ask("", "nvmlDeviceGetUUID", handle)
            if not isinstance(uuid, Refusal):
                found[uuid.decode(errors="replace") if isinstance(uuid, bytes) else str(uuid)] = handle
        return found

    def _greet(self, uuid: str, handle: Any, now_s: float) -> None:
        """A device that is new, has returned, or was there all along: it has a new handle."""
        gpu = self._gpus.get(uuid)
        if gpu is None:
            device = f"{self._node}/gpu{len(self._gpus)}"
            identity = self._calls.watched("", "identity", lambda: self._nvml.identity(handle, device, uuid))
            gpu = Gpu(identity, Ring(GPU_COLUMNS, self._keep), self._events)
            self._gpus = {**self._gpus, uuid: gpu}
            self._events.add(EventKind.APPEARED, gpu.id, now_s, f"{identity.name} {uuid}")
        elif not gpu.here:
            self._events.add(EventKind.RETURNED, gpu.id, now_s, uuid)
        number = list(self._gpus).index(uuid)
        gpu.begin(handle, now_s, ROUNDS_S, (number % 5) * self._period_s)

    def _driver_listing(self) -> frozenset[str]:
        try:
            return frozenset(path.name for path in self._listing.iterdir())
        except OSError:
            return frozenset()


def _unknown(device: str) -> Ring:
    raise KeyError(device)
