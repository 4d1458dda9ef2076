"""The fake driver library: compiles it, lays out its state file, and runs Python against it in a process of its own.

The library must never reach a process that imports vllm (which would take the fake GPUs for real ones), nor the tests'
own: only `run_python` points the loader at it.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SLOTS, LINKS = 16, 18
GPU_IS_LOST, DRIVER_NOT_LOADED, VERSION_MISMATCH, UNKNOWN = 15, 9, 18, 999
POWER_CAP, SW_THERMAL, HW_THERMAL = 0x4, 0x20, 0x40

_COUNTS = [
    "present",
    "error",
    "hang",
    "delay_us",
    "util",
    "memory_util",
    "temp_c",
    "memory_temp_c",
    "power_mw",
    "power_limit_mw",
    "default_power_limit_mw",
    "sm_mhz",
    "memory_mhz",
    "max_sm_mhz",
    "max_memory_mhz",
    "bus_width",
    "cores",
    "slowdown_c",
    "shutdown_c",
    "mig",
    "pcie_gen",
    "pcie_width",
    "max_pcie_gen",
    "max_pcie_width",
    "numa",
    "bus",
    "nvlinks",
    "nvlink_version",
    "nvlink_mbps",
    "process_count",
    "util_error",
    "has_fields",
]
_WIDE = [
    "throttle",
    "memory_total",
    "memory_used",
    "ecc_corrected",
    "ecc_uncorrected",
    "pcie_tx_bytes",
    "pcie_rx_bytes",
    "nvlink_tx_kib",
    "nvlink_rx_kib",
    "thermal_ns",
    "power_ns",
    "energy_mj",
    "calls",
]


class Gpu(ctypes.Structure):
    """One device as nvml.c lays it out; assign to its fields, and the library answers so."""

    _fields_ = [
        *((name, ctypes.c_uint) for name in _COUNTS),
        ("nvlink_peer", ctypes.c_int * LINKS),
        ("process_pid", ctypes.c_uint * 4),
        ("process_bytes", ctypes.c_ulonglong * 4),
        *((name, ctypes.c_ulonglong) for name in _WIDE),
        ("calls_until_error", ctypes.c_uint),
        ("error_later", ctypes.c_uint),
        ("throttled_at_ns", ctypes.c_ulonglong),
        ("lost_at_ns", ctypes.c_ulonglong),
        ("name", ctypes.c_char * 64),
        ("uuid", ctypes.c_char * 48),
    ]


class State(ctypes.Structure):
    """The whole library's."""

    _fields_ = [
        *(
            (name, ctypes.c_uint)
            for name in ("init_error", "library_error", "inits", "closes", "hang_init", "pad")
        ),
        ("driver", ctypes.c_char * 32),
        ("gpu", Gpu * SLOTS),
    ]


MIB = 1 << 20
PROFILES: dict[str, dict[str, Any]] = {
    "h100": {
        "name": b"NVIDIA H100 80GB HBM3",
        "memory_total": 81559 * MIB,
        "default_power_limit_mw": 700_000,
        "max_sm_mhz": 1980,
        "max_memory_mhz": 2619,
        "bus_width": 5120,
        "cores": 16896,
        "pcie_gen": 5,
        "nvlinks": 18,
        "nvlink_version": 4,
        "nvlink_mbps": 26562,
        "slowdown_c": 87,
        "shutdown_c": 92,
    },
    "a10": {
        "name": b"NVIDIA A10",
        "memory_total": 23028 * MIB,
        "default_power_limit_mw": 150_000,
        "max_sm_mhz": 1695,
        "max_memory_mhz": 6251,
        "bus_width": 384,
        "cores": 9216,
        "pcie_gen": 4,
        "slowdown_c": 95,
        "shutdown_c": 98,
    },
    "t4": {
        "name": b"Tesla T4",
        "memory_total": 15360 * MIB,
        "default_power_limit_mw": 70_000,
        "max_sm_mhz": 1590,
        "max_memory_mhz": 5001,
        "bus_width": 256,
        "cores": 2560,
        "pcie_gen": 3,
        "slowdown_c": 93,
        "shutdown_c": 96,
        "has_fields": 0,
    },
}


class Machine:
    """The state file, mapped: what the library in another process answers from."""

    def __init__(self, path: Path) -> None:
        fresh = not path.exists()
        if fresh:
            path.write_bytes(bytes(ctypes.sizeof(State)))
        self.path = path
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self.state = State.from_buffer(self._map)
        if fresh:
            self.state.driver = b"570.86.15"

    def gpu(self, slot: int) -> Gpu:
        """One device."""
        found: Gpu = self.state.gpu[slot]
        return found

    def reset(self) -> None:
        """No device, no fault."""
        ctypes.memset(ctypes.addressof(self.state), 0, ctypes.sizeof(State))
        self.state.driver = b"570.86.15"

    def plug(self, slot: int, profile: str = "h100", **changed: Any) -> Gpu:
        """Put a device into a slot."""
        gpu = self.gpu(slot)
        figures = {
            "util": 35, "memory_util": 20, "temp_c": 55, "memory_temp_c": 60, "sm_mhz": 1500, "memory_mhz": 2600,
            "power_mw": 210_000, "mig": 2, "pcie_width": 16, "max_pcie_width": 16, "has_fields": 1,
            "bus": 0x10 + slot, "numa": 0, "memory_used": 2048 * MIB, "uuid": f"GPU-{slot:08d}-fake".encode(),
        } | PROFILES[profile] | changed  # fmt: skip
        figures.setdefault("max_pcie_gen", figures["pcie_gen"])
        figures.setdefault("power_limit_mw", figures["default_power_limit_mw"])
        for link in range(LINKS):
            gpu.nvlink_peer[link] = -1
        for name, value in figures.items():
            setattr(gpu, name, value)
        gpu.error = gpu.hang = 0
        gpu.present = 1
        return gpu


@functools.cache
def library(*flags: str) -> Path | None:
    """The folder with the compiled libnvidia-ml.so.1; None where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    source = (HERE / "nvml.c").read_bytes()
    digest = hashlib.sha256(source + " ".join(flags).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"autopoiesis-fake-nvml-{os.getuid()}-{digest}"
    target = folder / "libnvidia-ml.so.1"
    if not target.exists():
        folder.mkdir(mode=0o700, exist_ok=True)
        made = folder / f"{os.getpid()}.so"
        command = [compiler, "-O1", "-shared", "-fPIC", *flags, "-o", str(made), str(HERE / "nvml.c")]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        made.rename(target)
    return folder


def environment(state: Path, *flags: str, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a process needs to see the fake GPUs. Raises RuntimeError where there is no C compiler."""
    folder = library(*flags)
    if folder is None:
        raise RuntimeError("no C compiler (cc, gcc or clang) to build the fake driver library with")
    return {**(base or os.environ), "LD_LIBRARY_PATH": str(folder), "FAKE_NVML_STATE": str(state)}


def run_python(
    arguments: list[str], state: Path, *flags: str, timeout_s: float = 900.0
) -> subprocess.CompletedProcess[str]:
    """Run this Python with these arguments against the fake library."""
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment(state, *flags),
        cwd=HERE.parents[3],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
