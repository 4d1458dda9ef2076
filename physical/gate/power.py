"""GPU power limits through NVML. Six functions of it, by ctypes; nothing here can reset a device or touch MIG."""

from __future__ import annotations

import ctypes
import ctypes.util
from typing import Any

from physical.gate.actuator import ActuatorError

_MILLIWATTS = 1000.0
_SAID = {
    1: "NVML is not initialised",
    2: "no such device",
    3: "the device does not support it",
    4: "no permission: power limits are the administrator's",
    6: "no such device",
    9: "no NVIDIA driver is loaded",
    15: "the GPU is lost",
}


class NvmlPower:
    """PowerControl of this machine's NVIDIA GPUs, by index or UUID. Raises ActuatorError where there is no NVML."""

    def __init__(self, library: str | None = None) -> None:
        name = library or ctypes.util.find_library("nvidia-ml") or "libnvidia-ml.so.1"
        try:
            self._nvml: Any = ctypes.CDLL(name)
        except OSError as error:
            raise ActuatorError(f"no NVML on this machine: {error}") from error
        self._call("nvmlInit_v2")

    def limit_watts(self, device: str) -> float:
        """What it is set to."""
        value = ctypes.c_uint()
        self._call("nvmlDeviceGetPowerManagementLimit", self._handle(device), ctypes.byref(value))
        return value.value / _MILLIWATTS

    def range_watts(self, device: str) -> tuple[float, float]:
        """(least, most) that it can be set to."""
        least, most = ctypes.c_uint(), ctypes.c_uint()
        self._call(
            "nvmlDeviceGetPowerManagementLimitConstraints",
            self._handle(device),
            ctypes.byref(least),
            ctypes.byref(most),
        )
        return least.value / _MILLIWATTS, most.value / _MILLIWATTS

    def set_limit_watts(self, device: str, watts: float) -> None:
        """Set it; the administrator's right."""
        value = ctypes.c_uint(round(watts * _MILLIWATTS))
        self._call("nvmlDeviceSetPowerManagementLimit", self._handle(device), value)

    def _handle(self, device: str) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        if device.isascii() and device.isdigit():
            self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(int(device)), ctypes.byref(handle))
        else:
            self._call("nvmlDeviceGetHandleByUUID", device.encode(), ctypes.byref(handle))
        return handle

    def _call(self, function: str, *arguments: Any) -> None:
        try:
            code = int(getattr(self._nvml, function)(*arguments))
        except AttributeError:
            raise ActuatorError(f"this NVML has no {function}") from None
        if code:
            raise ActuatorError(f"{function}: {_SAID.get(code, f'NVML error {code}')}")
