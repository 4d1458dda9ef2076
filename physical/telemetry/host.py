"""The machine itself as a source of samples: CPU and memory through psutil, pressure, power and heat as Linux shows them.

What this machine does not have (RAPL and thermal zones are rare in virtual machines, pressure wants Linux 4.20) stays
None. Files are opened once and read again in place.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import psutil

from loop.contracts.telemetry import HostSample
from physical.telemetry.store import HOST_COLUMNS, NAN, EventLog, Ring, host_sample

PERIOD_S: Final = 0.5
SLOW_S: Final = 1.0
_READ_BYTES = 4096


class HostSource:
    """CPU, memory, pressure, power, temperature of this machine. `poll` at any rate; it looks twice a second."""

    name = "host"

    def __init__(
        self,
        events: EventLog,
        *,
        node: str = "local-0",
        keep: int = 600,
        clock: Callable[[], float],
        proc: Path = Path("/proc"),
        sys: Path = Path("/sys"),
    ) -> None:
        self.device = f"{node}/cpu0"
        self.ring = Ring(HOST_COLUMNS, keep)
        self._events = events
        self._clock = clock
        self._row = dict.fromkeys(HOST_COLUMNS, NAN)
        self._due_s = self._slow_due_s = -1.0
        self._cpu_then: tuple[list[float], list[float]] | None = None
        self._load = _Reread(proc / "loadavg")
        self._pressure = {
            f"{what}_pressure": (_Reread(proc / "pressure" / what), _Growth())
            for what in ("cpu", "memory", "io")
        }
        self._zones = [
            _Reread(path / "temp") for path in sorted((sys / "class/thermal").glob("thermal_zone*"))
        ]
        self._zones += [_Reread(path) for path in sorted((sys / "class/hwmon").glob("hwmon*/temp*_input"))]
        self._packages = [
            (_Reread(path / "energy_uj"), _Growth(_number(path / "max_energy_range_uj")))
            for path in sorted((sys / "class/powercap").glob("intel-rapl:*"))
            if path.name.count(":") == 1  # packages; what is below them is counted in them
        ]
        cpus = sys / "devices/system/cpu"
        self._clocks = [_Reread(path) for path in sorted(cpus.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))]

    def poll(self, now_s: float) -> None:
        """Look, if it is time."""
        if now_s < self._due_s:
            return
        self._due_s = now_s + PERIOD_S - 0.05
        row = self._row
        row["utilisation"], row["busiest_core"] = self._utilisation()
        memory = psutil.virtual_memory()
        row["memory_total_bytes"] = float(memory.total)
        row["memory_used_bytes"] = float(memory.total - memory.available)
        row["run_queue"] = self._run_queue()
        for name, (file, growth) in self._pressure.items():
            stalled = _pressure_us(file.text())
            share = growth.per_s(stalled, now_s) * 1e-6
            row[name] = 1.0 if share > 1.0 else share  # NaN stays NaN
        if now_s >= self._slow_due_s:
            self._slow_due_s = now_s + SLOW_S - 0.05
            self._look_slowly(now_s)
        self.ring.append(now_s, [row[name] for name in HOST_COLUMNS])

    def sample(self) -> HostSample | None:
        """The newest; None before the first."""
        last = self.ring.last()
        return None if last is None else host_sample(self.device, *last)

    def release(self) -> None:
        """Nothing is bound to a thread."""

    def close(self) -> None:
        """Close the files."""
        files = [self._load, *self._zones, *self._clocks]
        files += [file for file, _ in (*self._pressure.values(), *self._packages)]
        for file in files:
            file.close()

    def _look_slowly(self, now_s: float) -> None:
        row = self._row
        degrees = [value * 1e-3 for zone in self._zones if (value := zone.number()) is not None and value > 0]
        row["temperature_c"] = max(degrees, default=NAN)
        watts = [growth.per_s(file.number(), now_s) * 1e-6 for file, growth in self._packages]
        row["power_w"] = sum(watts) if watts else NAN
        khz = [value for clock in self._clocks if (value := clock.number()) is not None]
        row["frequency_mhz"] = sum(khz) / len(khz) * 1e-3 if khz else NAN

    def _utilisation(self) -> tuple[float, float]:
        """(all CPUs, busiest) since the last look; NaN at the first."""
        busy, total = [], []
        for cpu in psutil.cpu_times(percpu=True):
            whole = sum(cpu) - getattr(cpu, "guest", 0.0) - getattr(cpu, "guest_nice", 0.0)
            total.append(whole)
            busy.append(whole - cpu.idle - getattr(cpu, "iowait", 0.0))
        then, self._cpu_then = self._cpu_then, (busy, total)
        if then is None or len(then[0]) != len(busy):
            return NAN, NAN
        shares = [
            min(1.0, max(0.0, (b - b0) / (t - t0))) if t > t0 else 0.0
            for b, b0, t, t0 in zip(busy, then[0], total, then[1], strict=True)
        ]
        return sum(shares) / len(shares), max(shares)

    def _run_queue(self) -> float:
        """Tasks that run or wait for a CPU now, this thread left out."""
        text = self._load.text()
        try:
            return max(0.0, float(text.split()[3].partition("/")[0]) - 1.0)
        except (IndexError, ValueError):
            return NAN


class _Reread:
    """A small file of the kernel's, read again and again."""

    def __init__(self, path: Path) -> None:
        self._fd: int | None = None
        with contextlib.suppress(OSError):
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def text(self) -> str:
        """What it says now; empty when it cannot be read."""
        if self._fd is None:
            return ""
        try:
            return os.pread(self._fd, _READ_BYTES, 0).decode(errors="replace")
        except OSError:
            return ""

    def number(self) -> float | None:
        """What it says now, when that is a number."""
        try:
            return float(self.text())
        except ValueError:
            return None

    def close(self) -> None:
        """Read no more."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class _Growth:
    """A counter's growth per second between two looks; `span`: where it begins anew."""

    def __init__(self, span: float | None = None) -> None:
        self._span = span
        self._then: tuple[float, float] | None = None

    def per_s(self, count: float | None, now_s: float) -> float:
        """NaN where nothing is known yet."""
        if count is None:
            return NAN
        then, self._then = self._then, (now_s, count)
        if then is None or now_s <= then[0]:
            return NAN
        grown = count - then[1]
        if grown < 0:
            if self._span is None:
                return NAN
            grown += self._span
        return grown / (now_s - then[0])


def _pressure_us(text: str) -> float | None:
    """Microseconds in which some task was stalled, from a file of /proc/pressure."""
    line = text.partition("\n")[0]
    _, found, total = line.partition("total=")
    try:
        return float(total) if found else None
    except ValueError:
        return None


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
