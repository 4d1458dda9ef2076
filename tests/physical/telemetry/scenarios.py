"""What happens to GPUs, told to the genuine binding by the fake library. Runs in a process of its own:

python -m tests.physical.telemetry.scenarios [NAME...]      # one JSON object: name -> what failed, or null
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from loop.contracts import telemetry as contracts
from loop.contracts.telemetry import EventKind, TelemetryEvent
from physical.telemetry.calls import Superseded
from physical.telemetry.gpus import GpuSource
from physical.telemetry.nvml import Nvml, Refusal
from physical.telemetry.sampler import Telemetry
from physical.telemetry.store import EventLog
from tests.physical.telemetry import fake

Scenario = Callable[[fake.Machine], None]
SCENARIOS: dict[str, Scenario] = {}
THREADED: dict[str, Scenario] = {}
"""With real threads, which take their time."""
OLD_DRIVER: dict[str, Scenario] = {}
PATIENCE_S = 300.0


def scenario(function: Scenario) -> Scenario:
    """For the library of today."""
    SCENARIOS[function.__name__] = function
    return function


def threaded(function: Scenario) -> Scenario:
    """The same, for `THREADED`."""
    THREADED[function.__name__] = function
    return function


class World:
    """GPUs on virtual time."""

    made: ClassVar[list[World]] = []

    def __init__(self, listing: Path = Path("/nonexistent")) -> None:
        self.now_s = 100.0
        self.log = EventLog()
        self.source = GpuSource(self.log, clock=lambda: self.now_s, listing=listing)
        self._told = 0
        self.made.append(self)

    def run(self, seconds: float) -> None:
        """Ten polls a second."""
        for _ in range(max(1, round(10 * seconds))):
            self.source.poll(self.now_s)
            self.now_s += 0.1

    def events(self) -> list[TelemetryEvent]:
        """Those since last asked for."""
        found = self.log.since(self._told)
        self._told = self.log.count
        return [entry.event for entry in found]

    def kinds(self) -> list[tuple[EventKind, str]]:
        return [(event.kind, event.device.rpartition("/")[2]) for event in self.events()]

    def temperatures(self) -> dict[str, float | None]:
        return {s.device.rpartition("/")[2]: s.temperature_c for s in self.source.samples()}


def eight(machine: fake.Machine) -> World:
    for slot in range(8):
        machine.plug(slot, temp_c=50 + slot)
    world = World()
    world.run(2.0)
    assert world.kinds() == [(EventKind.APPEARED, f"gpu{i}") for i in range(8)]
    return world


@scenario
def every_figure_arrives_in_its_unit(machine: fake.Machine) -> None:
    gpu = machine.plug(
        0, util=73, memory_util=41, temp_c=66, power_mw=431_500, throttle=fake.POWER_CAP, ecc_corrected=7,
        mig=1, process_count=2, energy_mj=5_000_000, thermal_ns=2_500_000_000,
    )  # fmt: skip
    gpu.process_pid[0], gpu.process_bytes[0] = 4711, 3 << 30
    gpu.process_pid[1], gpu.process_bytes[1] = 4712, (1 << 64) - 1  # the driver does not tell
    world = World()
    world.run(1.0)
    gpu.pcie_tx_bytes, gpu.nvlink_rx_kib = 5_000_000, 2_000
    world.run(1.0)
    (sample,) = world.source.samples()
    assert (sample.device, sample.utilisation, sample.memory_utilisation) == ("local-0/gpu0", 0.73, 0.41)
    assert (sample.temperature_c, sample.power_w, sample.power_limit_w) == (66, 431.5, 700)
    assert (sample.memory_used_bytes, sample.memory_total_bytes) == (2 << 30, 81559 << 20)
    assert (sample.sm_clock_mhz, sample.memory_clock_mhz, sample.memory_temperature_c) == (1500, 2600, 60)
    assert (sample.throttle, sample.mig, sample.ecc_corrected) == (("power-cap",), True, 7)
    assert (sample.energy_joules, sample.thermal_violation_s) == (5000, 2.5)
    assert sample.pcie_tx_bytes_per_s is not None
    assert abs(sample.pcie_tx_bytes_per_s - 5e6) < 1e6
    assert sample.nvlink_rx_bytes_per_s is not None
    assert abs(sample.nvlink_rx_bytes_per_s - 2000 * 1024) < 0.5e6
    assert sample.processes == (contracts.GpuProcess(4711, 3 << 30), contracts.GpuProcess(4712, None))
    (who,) = world.source.identities
    assert (who.name, who.slowdown_c, who.shutdown_c) == ("NVIDIA H100 80GB HBM3", 87, 92)
    assert who.default_power_limit_w == 700


@scenario
def unlike_devices_side_by_side(machine: fake.Machine) -> None:
    for slot, profile in enumerate(("h100", "h100", "a10", "a10", "t4", "t4", "h100", "t4")):
        machine.plug(slot, profile, ecc_corrected=slot)
    world = World()
    world.run(2.0)
    samples = world.source.samples()
    assert len(samples) == 8
    assert samples[2].nvlink_tx_bytes_per_s is None
    assert samples[4].pcie_tx_bytes_per_s is not None  # no batched figure: asked alone
    assert [s.ecc_corrected for s in samples] == list(range(8))
    assert not [event for event in world.events() if event.kind is not EventKind.APPEARED]


@scenario
def throttling_begins_and_ends(machine: fake.Machine) -> None:
    world = eight(machine)
    gpu = machine.gpu(3)
    gpu.throttle = fake.SW_THERMAL
    began_s = world.now_s
    world.run(0.1)
    (event,) = world.events()
    assert (event.kind, event.device, event.at_s) == (EventKind.THROTTLING, "local-0/gpu3", began_s)
    assert event.detail == "sw-thermal"
    for _ in range(10):  # comes and goes: one episode
        gpu.throttle = 0
        world.run(0.3)
        gpu.throttle = fake.SW_THERMAL
        world.run(0.2)
    assert world.events() == []
    gpu.throttle = fake.SW_THERMAL | fake.POWER_CAP
    world.run(0.1)
    assert [event.detail for event in world.events()] == ["power-cap, sw-thermal"]
    gpu.throttle = 1  # idle is no throttling
    world.run(2.0)
    assert world.kinds() == [(EventKind.THROTTLING_ENDED, "gpu3")]


@scenario
def errors_of_memory_are_counted(machine: fake.Machine) -> None:
    world = eight(machine)
    machine.gpu(1).ecc_corrected = 4
    machine.gpu(6).ecc_uncorrected = 1
    world.run(2.0)
    found = {(e.kind, e.device.rpartition("/")[2]): e.value for e in world.events()}
    assert found == {(EventKind.ECC_CORRECTED, "gpu1"): 4, (EventKind.ECC_UNCORRECTED, "gpu6"): 1}


@scenario
def a_device_is_lost_and_returns(machine: fake.Machine) -> None:
    world = eight(machine)
    machine.gpu(5).error = fake.GPU_IS_LOST
    world.run(0.1)
    (event,) = world.events()
    assert (event.kind, event.device, event.detail) == (EventKind.LOST, "local-0/gpu5", "GPU is lost")
    assert len(world.temperatures()) == 7
    world.run(20.0)
    assert world.events() == []
    assert "gpu5" not in world.temperatures()
    machine.gpu(5).error = 0
    world.run(35.0)
    assert world.kinds() == [(EventKind.RETURNED, "gpu5")]
    assert world.temperatures()["gpu5"] == 55
    assert len(world.source.identities) == 8


@scenario
def a_device_is_lost_in_the_middle_of_a_poll(machine: fake.Machine) -> None:
    for nth in range(1, 14):
        machine.reset()
        world = eight(machine)
        gpu = machine.gpu(4)
        gpu.error_later, gpu.calls_until_error = fake.GPU_IS_LOST, nth
        world.run(3.0)
        kinds = world.kinds()
        assert kinds[0] == (EventKind.LOST, "gpu4"), (nth, kinds)
        assert len(world.temperatures()) == 7
        world.source.close()


@scenario
def unplugged_and_plugged_in_again_elsewhere(machine: fake.Machine) -> None:
    world = eight(machine)
    uuid = machine.gpu(2).uuid
    machine.gpu(2).present = 0
    world.run(3.0)
    assert world.kinds() == [(EventKind.LOST, "gpu2")]
    machine.plug(11, uuid=uuid, temp_c=44)
    world.run(35.0)
    assert world.kinds() == [(EventKind.RETURNED, "gpu2")]
    assert world.temperatures()["gpu2"] == 44


@scenario
def a_new_device_is_seen_by_the_drivers_listing(machine: fake.Machine) -> None:
    listing = machine.path.parent / "listing"
    listing.mkdir()
    (listing / "0000:10:00.0").mkdir()
    machine.plug(0)
    world = World(listing)
    world.run(2.0)
    machine.plug(1)
    world.run(5.0)
    assert world.kinds() == [
        (EventKind.APPEARED, "gpu0")
    ]  # the library lists what was there when it was opened
    (listing / "0000:11:00.0").mkdir()
    world.run(2.0)
    assert world.kinds() == [(EventKind.APPEARED, "gpu1")]


@scenario
def the_driver_goes_and_comes_back(machine: fake.Machine) -> None:
    world = eight(machine)
    machine.state.library_error = fake.DRIVER_NOT_LOADED
    machine.state.init_error = fake.DRIVER_NOT_LOADED
    world.run(1.0)
    kinds = world.kinds()
    assert kinds[0] == (EventKind.NO_DRIVER, "")
    assert sorted(kinds[1:]) == [(EventKind.LOST, f"gpu{i}") for i in range(8)]
    assert world.source.samples() == ()
    world.run(10.0)
    assert world.events() == []
    machine.state.library_error = machine.state.init_error = 0
    world.run(35.0)
    kinds = world.kinds()
    assert kinds[0] == (EventKind.DRIVER_BACK, "")
    assert sorted(kinds[1:]) == [(EventKind.RETURNED, f"gpu{i}") for i in range(8)]
    assert len(world.source.samples()) == 8


@scenario
def a_library_of_another_version_is_told(machine: fake.Machine) -> None:
    machine.plug(0)
    machine.state.init_error = fake.VERSION_MISMATCH
    world = World()
    world.run(5.0)
    (event,) = world.events()
    assert event.kind is EventKind.NO_DRIVER
    assert "mismatch" in event.detail
    machine.state.init_error = 0
    world.run(35.0)
    assert world.kinds() == [(EventKind.DRIVER_BACK, ""), (EventKind.APPEARED, "gpu0")]


@scenario
def one_figure_fails_and_the_others_go_on(machine: fake.Machine) -> None:
    world = eight(machine)
    machine.gpu(0).util_error = fake.UNKNOWN
    world.run(3.0)
    assert world.kinds() == [(EventKind.CALL_FAILED, "gpu0")]
    sample = world.source.samples()[0]
    assert sample.utilisation is None
    assert sample.temperature_c == 50
    machine.gpu(0).util_error = 0
    world.run(0.2)
    assert world.source.samples()[0].utilisation == 0.35
    machine.gpu(0).util_error = 3  # not supported: never asked for again
    world.run(1.0)
    assert world.events() == []
    machine.gpu(0).util_error = 0
    world.run(1.0)
    assert world.source.samples()[0].utilisation is None


@scenario
def mig_is_seen_and_left_alone(machine: fake.Machine) -> None:
    machine.plug(0, mig=0)
    world = World()
    world.run(1.0)
    assert world.source.samples()[0].mig is False
    machine.gpu(0).mig = 1
    world.run(12.0)
    assert (EventKind.MIG_CHANGED, "gpu0") in world.kinds()
    assert world.source.samples()[0].mig is True


@scenario
def prepared_calls_are_those_of_the_genuine_binding(machine: fake.Machine) -> None:
    machine.plug(0, temp_c=61)
    library = Nvml()
    assert library.open() is None
    ((_, handle),) = library.handles()
    call = library.prepare("nvmlDeviceGetTemperature", handle, (0,), "uint")
    assert call is not None
    assert call.function(*call.arguments) == 0
    assert call.target.value == library.ask("nvmlDeviceGetTemperature", handle, 0) == 61
    assert library.prepare("nvmlDeviceGetNothing", handle, (), "uint") is None
    assert isinstance(library.ask("nvmlDeviceGetNothing", handle), Refusal)
    library.close()
    assert machine.state.inits == machine.state.closes == 1


@threaded
def a_call_that_hangs_costs_one_device(machine: fake.Machine) -> None:
    for slot in range(8):
        machine.plug(slot)
    with Telemetry(stall_s=3.0, budget=1.0, listing=Path("/nonexistent")) as telemetry:
        wait_for(lambda: len(telemetry.samples()) == 8)
        machine.gpu(2).hang = 1
        wait_for(lambda: kinds_of(telemetry, EventKind.STALLED) == ["local-0/gpu2"])
        assert not telemetry.here("local-0/gpu2")
        before = machine.gpu(7).calls
        wait_for(lambda: machine.gpu(7).calls > before + 50)  # the others go on
        machine.gpu(2).hang = 0
        wait_for(lambda: kinds_of(telemetry, EventKind.ANSWERING) == ["local-0/gpu2"])
        wait_for(lambda: telemetry.here("local-0/gpu2") and len(telemetry.samples()) == 8)
        assert kinds_of(telemetry, EventKind.LOST) == []
        wait_for(lambda: sum(t.name == "telemetry-gpus" for t in threading.enumerate()) == 1)


@threaded
def an_initialisation_that_hangs_is_told(machine: fake.Machine) -> None:
    machine.plug(0)
    machine.state.hang_init = 1
    with Telemetry(stall_s=3.0, budget=1.0, listing=Path("/nonexistent")) as telemetry:
        wait_for(lambda: kinds_of(telemetry, EventKind.STALLED) == [""])
        wait_for(lambda: telemetry.host() is not None)
        assert telemetry.samples() == ()
        machine.state.hang_init = 0
        wait_for(lambda: len(telemetry.samples()) == 1)


@threaded
def sampling_that_costs_too_much_is_stretched(machine: fake.Machine) -> None:
    machine.plug(0)
    with Telemetry(period_s=0.01, budget=1e-6, listing=Path("/nonexistent")) as telemetry:
        wait_for(lambda: telemetry.period_s > 0.01)
        wait_for(lambda: kinds_of(telemetry, EventKind.OVER_BUDGET) == [""])
        assert telemetry.cpu_share > 0


@scenario
def a_second_owner_cannot_poll(machine: fake.Machine) -> None:
    machine.plug(0)
    world = World()
    world.run(0.1)
    failed: list[str] = []

    def intrude() -> None:
        try:
            world.source.poll(world.now_s)
        except Superseded:
            failed.append("superseded")

    thread = threading.Thread(target=intrude)
    thread.start()
    thread.join()
    assert failed == ["superseded"]
    world.source.release()
    thread = threading.Thread(target=intrude)
    thread.start()
    thread.join()
    assert failed == ["superseded"]


def an_old_driver_lacks_symbols(machine: fake.Machine) -> None:
    machine.plug(0, ecc_corrected=2, pcie_tx_bytes=4096, throttle=fake.HW_THERMAL)
    world = World()
    world.run(2.0)
    kinds = [(event.kind, event.detail.partition(":")[0]) for event in world.events()]
    assert kinds[0][0] is EventKind.APPEARED
    assert (EventKind.MISSING_SYMBOL, "nvmlDeviceGetFieldValues") in kinds
    assert len(kinds) == len(set(kinds))  # each is told once
    (sample,) = world.source.samples()
    assert sample.throttle == ("hw-thermal",)  # by the call's older name
    assert sample.ecc_corrected == 2  # asked alone
    assert sample.pcie_tx_bytes_per_s == 4096
    assert sample.energy_joules is None
    world.run(5.0)
    assert world.events() == []


OLD_DRIVER["an_old_driver_lacks_symbols"] = an_old_driver_lacks_symbols


def wait_for(condition: Callable[[], bool]) -> None:
    """Until it holds. A real thread does the work: there is no clock to turn."""
    ticking = threading.Event()
    for _ in range(int(PATIENCE_S / 0.01)):
        if condition():
            return
        ticking.wait(0.01)
    raise AssertionError("did not come about")


def kinds_of(telemetry: Telemetry, kind: EventKind) -> list[str]:
    return [entry.event.device for entry in telemetry.events() if entry.event.kind is kind]


def main() -> None:
    path = Path(os.environ["FAKE_NVML_STATE"])
    machine = fake.Machine(path)
    chosen = SCENARIOS | THREADED | OLD_DRIVER
    outcome: dict[str, str | None] = {}
    for name in sys.argv[1:] or list(SCENARIOS):
        machine.reset()
        try:
            chosen[name](machine)
        except Exception:  # noqa: BLE001 - the test that is named shows it
            outcome[name] = traceback.format_exc()
        else:
            outcome[name] = None
        while World.made:  # the library lists anew only when all who opened it have closed it
            World.made.pop().source.close()
    json.dump(outcome, sys.stdout)


if __name__ == "__main__":
    main()
