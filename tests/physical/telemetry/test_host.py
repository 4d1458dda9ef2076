import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from physical.telemetry.cli import app
from physical.telemetry.host import HostSource
from physical.telemetry.sampler import Telemetry
from physical.telemetry.store import EventLog

runner = CliRunner()


def _write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _pressure(total_us: int) -> str:
    return f"some avg10=0.00 avg60=0.00 avg300=0.00 total={total_us}\nfull avg10=0.00 total=0\n"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    root = tmp_path
    (root / "sys/class/powercap/intel-rapl:0").mkdir(parents=True)
    (root / "sys/class/powercap/intel-rapl:0:0").mkdir()
    (root / "sys/class/powercap/intel-rapl:0/energy_uj").write_text("1000000")
    (root / "sys/class/powercap/intel-rapl:0/max_energy_range_uj").write_text("100000000")
    (root / "sys/class/powercap/intel-rapl:0:0/energy_uj").write_text("5")
    _write(
        root,
        proc__loadavg="0.5 0.4 0.3 4/321 777",
        proc__pressure__cpu=_pressure(1_000_000),
        proc__pressure__memory=_pressure(0),
        sys__class__thermal__thermal_zone0__temp="41000",
        sys__class__thermal__thermal_zone1__temp="52500",
        sys__devices__system__cpu__cpu0__cpufreq__scaling_cur_freq="2000000",
        sys__devices__system__cpu__cpu1__cpufreq__scaling_cur_freq="3000000",
    )
    return root


def test_pressure_power_and_heat(machine: Path) -> None:
    source = HostSource(EventLog(), clock=lambda: 0.0, proc=machine / "proc", sys=machine / "sys")
    source.poll(10.0)
    first = source.sample()
    assert first is not None
    assert (first.temperature_c, first.frequency_mhz, first.run_queue) == (52.5, 2500, 3)
    assert (first.power_w, first.cpu_pressure, first.utilisation) == (None, None, None)
    _write(machine, proc__pressure__cpu=_pressure(1_500_000))
    (machine / "sys/class/powercap/intel-rapl:0/energy_uj").write_text("51000000")
    source.poll(10.1)  # too early: twice a second is enough
    assert len(source.ring) == 1
    source.poll(11.0)
    second = source.sample()
    assert second is not None
    assert second.cpu_pressure == pytest.approx(0.5)
    assert second.power_w == pytest.approx(50.0)
    assert second.io_pressure is None  # this kernel has no such file
    assert second.memory_used_bytes is not None
    assert second.memory_total_bytes is not None
    assert 0 < second.memory_used_bytes < second.memory_total_bytes
    (machine / "sys/class/powercap/intel-rapl:0/energy_uj").write_text("1000000")  # began anew
    source.poll(12.0)
    wrapped = source.sample()
    assert wrapped is not None
    assert wrapped.power_w == pytest.approx(50.0)
    source.close()


def test_telemetry_without_any_gpu() -> None:
    clock = iter(range(1000)).__next__
    telemetry = Telemetry(clock=lambda: float(clock()), gpus=False)
    for _ in range(4):
        telemetry.poll()
    host = telemetry.host()
    assert host is not None
    assert telemetry.samples() == ()
    assert host.device == "local-0/cpu0"
    window = telemetry.window(-1.0, 1e9)
    assert [device.device for device in window.devices] == ["local-0/cpu0"]
    with pytest.raises(KeyError):
        telemetry.ring("local-0/gpu0")
    telemetry.close()


def test_a_period_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="period_s"):
        Telemetry(period_s=0.0)


@pytest.mark.slow
def test_watch_once_prints_one_object_a_line() -> None:
    result = runner.invoke(app, ["watch", "--once", "--json"])
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    shown = json.loads(line)
    assert shown["host"]["device"] == "local-0/cpu0"
    assert {"devices", "forecasts", "signals", "events", "missing"} <= set(shown)


@pytest.mark.slow
def test_watch_once_draws_a_table() -> None:
    result = runner.invoke(app, ["watch", "--once"])
    assert result.exit_code == 0, result.output
    assert "cpu0" in result.stdout


def test_bad_options_are_refused() -> None:
    assert runner.invoke(app, ["watch", "--interval", "0"]).exit_code == 2
