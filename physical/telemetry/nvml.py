"""NVML behind typed answers: the one module that imports the binding (nvidia-ml-py, module `pynvml`).

Nothing of the binding escapes: a call gives its value or a `Refusal` that says what the driver meant. The binding is
imported when the library is opened, not with this module. Whatever is asked here only reads.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from types import ModuleType
from typing import Any, Final

from loop.contracts.telemetry import GpuIdentity


class Cause(Enum):
    """What a refusal means for who asked."""

    LOST = "lost"
    """The device is gone, or wants a reset."""
    LIBRARY = "library"
    """Nothing can be asked of any device: no library, no driver, or one of another version."""
    ABSENT = "absent"
    """There is no library on this machine, or no binding to it."""
    MISSING = "missing"
    """Driver or binding are too old to know the call."""
    UNSUPPORTED = "unsupported"
    """This device has no such figure, or does not tell it to us."""
    TRANSIENT = "transient"
    """Not now."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A call that was not answered."""

    cause: Cause
    call: str
    text: str
    """The driver's own words."""


_CAUSES: Final = {
    1: Cause.LIBRARY,  # uninitialised
    2: Cause.UNSUPPORTED,  # invalid argument: a handle that is gone, or a figure that is not known
    3: Cause.UNSUPPORTED,
    4: Cause.UNSUPPORTED,  # no permission
    6: Cause.UNSUPPORTED,  # nothing found that answers the question
    9: Cause.LIBRARY,  # driver not loaded
    12: Cause.ABSENT,  # library not found
    13: Cause.MISSING,
    15: Cause.LOST,
    16: Cause.LOST,  # reset required
    18: Cause.LIBRARY,  # library and kernel module differ
    25: Cause.MISSING,  # a structure of another version
    26: Cause.MISSING,  # deprecated
    28: Cause.LOST,  # GPU not found
}
THROTTLE_REASONS: Final = {
    0x4: "power-cap",
    0x8: "hw-slowdown",
    0x10: "sync-boost",
    0x20: "sw-thermal",
    0x40: "hw-thermal",
    0x80: "power-brake",
}
"""Bits of the clocks' event reasons that hold a busy device down (idle and set clocks do not count)."""
THERMAL_REASONS: Final = frozenset({"sw-thermal", "hw-thermal", "hw-slowdown"})


def throttle_reasons(mask: int) -> tuple[str, ...]:
    """The names of the reasons in a bit mask, those that throttle."""
    return tuple(name for bit, name in THROTTLE_REASONS.items() if mask & bit)


class Prepared:
    """One call with its arguments and its place for the answer made once: a tenth of the time of a fresh one.

    `function(*arguments)` gives NVML's return code; after 0, `target` holds the answer.
    """

    __slots__ = ("arguments", "call", "function", "target")

    def __init__(
        self, call: str, function: Callable[..., int], arguments: tuple[Any, ...], target: Any
    ) -> None:
        self.call = call
        self.function = function
        self.arguments = arguments
        self.target = target


class Nvml:
    """The library, opened or not. Calls are `ask("nvmlDeviceGetX", handle, ...)`."""

    def __init__(self) -> None:
        self._module: ModuleType | None = None
        self._error: type[Exception] = RuntimeError
        self._opened = False
        self._lock = threading.Lock()

    @property
    def opened(self) -> bool:
        """Can devices be asked?"""
        return self._opened

    def open(self) -> Refusal | None:
        """Load and initialise; what stands against it, or None. May take seconds on a machine with many GPUs."""
        if self._module is None:
            try:
                import pynvml  # noqa: PLC0415 - opened on request only
            except ImportError as error:
                return Refusal(Cause.ABSENT, "import", f"the binding nvidia-ml-py is not installed ({error})")
            self._module, self._error = pynvml, pynvml.NVMLError
        refused = self.ask("nvmlInitWithFlags", 0)
        if isinstance(refused, Refusal):
            return refused
        self._opened = True
        return None

    def close(self) -> None:
        """Let the library go; never fails."""
        with self._lock:
            if not self._opened:
                return
            self._opened = False
        self.ask("nvmlShutdown")

    def ask(self, call: str, *args: Any) -> Any:
        """The binding's answer, or a `Refusal`."""
        if self._module is None:
            return Refusal(Cause.LIBRARY, call, "the library was not opened")
        function = getattr(self._module, call, None)
        if function is None:
            return Refusal(Cause.MISSING, call, f"this nvidia-ml-py has no {call}")
        try:
            return function(*args)
        except self._error as error:
            code = int(getattr(error, "value", 999))
            return Refusal(_CAUSES.get(code, Cause.TRANSIENT), call, str(error))
        except (OSError, ValueError, TypeError, AttributeError) as error:  # the binding's own slips
            return Refusal(Cause.TRANSIENT, call, f"{type(error).__name__}: {error}")

    def prepare(self, call: str, handle: Any, arguments: tuple[int, ...], answer: str) -> Prepared | None:
        """A call of a `C function (handle, arguments..., answer *)` for use again and again, through the functions that
        the binding has loaded; `answer` is `uint`, `ulonglong` or a structure's name in the binding. None where the
        binding is laid out otherwise, or the driver lacks the call: then `ask`.
        """
        loaded = getattr(self._module, "nvmlLib", None)
        function = getattr(loaded, call, None)
        if function is None:
            return None
        kind = getattr(ctypes, f"c_{answer}", None) or getattr(self._module, answer, None)
        if kind is None:
            return None
        target = kind()
        given = (handle, *map(ctypes.c_int, arguments), ctypes.byref(target))
        return Prepared(call, function, given, target)

    def refusal(self, call: str, code: int) -> Refusal:
        """What a return code of a prepared call means."""
        return Refusal(_CAUSES.get(code, Cause.TRANSIENT), call, str(self._error(code)))

    def text(self, call: str, *args: Any) -> str | Refusal:
        """An answer that is text (the binding gives str or bytes, by its version)."""
        answer = self.ask(call, *args)
        if isinstance(answer, Refusal):
            return answer
        return answer.decode(errors="replace") if isinstance(answer, bytes) else str(answer)

    def number(self, call: str, *args: Any) -> float | None:
        """An answer that is a number; None where it is refused for any reason."""
        answer = self.ask(call, *args)
        return None if isinstance(answer, Refusal) else float(answer)

    def handles(self) -> Iterator[tuple[int, Any]]:
        """(index, handle or Refusal) of every device that the library lists."""
        count = self.ask("nvmlDeviceGetCount")
        if isinstance(count, Refusal):
            yield 0, count
            return
        for index in range(count):
            yield index, self.ask("nvmlDeviceGetHandleByIndex", index)

    def uuid(self, handle: Any) -> str | Refusal:
        """What tells one device from another for good."""
        return self.text("nvmlDeviceGetUUID", handle)

    def identity(self, handle: Any, device: str, uuid: str) -> GpuIdentity:
        """What does not change; what the driver does not tell is None."""
        pci = self.ask("nvmlDeviceGetPciInfo", handle)
        bus = "" if isinstance(pci, Refusal) else pci.busId
        memory = self.ask("nvmlDeviceGetMemoryInfo", handle)
        name = self.text("nvmlDeviceGetName", handle)
        limit = self.number("nvmlDeviceGetPowerManagementDefaultLimit", handle)
        return GpuIdentity(
            id=device,
            uuid=uuid,
            name="" if isinstance(name, Refusal) else name,
            pci_bus_id=bus.decode(errors="replace") if isinstance(bus, bytes) else str(bus),
            memory_bytes=0 if isinstance(memory, Refusal) else int(memory.total),
            default_power_limit_w=None if limit is None else limit / 1e3,
            max_sm_clock_mhz=self.number("nvmlDeviceGetMaxClockInfo", handle, SM_CLOCK),
            slowdown_c=self.number("nvmlDeviceGetTemperatureThreshold", handle, SLOWDOWN),
            shutdown_c=self.number("nvmlDeviceGetTemperatureThreshold", handle, SHUTDOWN),
        )

    def fields(self, handle: Any, wanted: list[tuple[int, int]]) -> dict[int, float | None] | Refusal:
        """Many figures in one call: field id -> value; None: this device has no such field. What could not be read
        just now is left out. `wanted` are (field, scope).
        """
        answer = self.ask("nvmlDeviceGetFieldValues", handle, wanted)
        if isinstance(answer, Refusal):
            return answer
        found: dict[int, float | None] = {}
        for value in answer:
            if value.nvmlReturn == 0:
                found[value.fieldId] = float(getattr(value.value, _MEMBER.get(value.valueType, "ullVal")))
            elif _CAUSES.get(value.nvmlReturn) in {Cause.UNSUPPORTED, Cause.MISSING}:
                found[value.fieldId] = None
        return found


_MEMBER: Final = {0: "dVal", 1: "uiVal", 2: "ulVal", 3: "ullVal", 4: "sllVal", 5: "siVal", 6: "usVal"}
SHUTDOWN, SLOWDOWN = 0, 1
SM_CLOCK, MEMORY_CLOCK = 1, 2
GPU_SENSOR = 0
CORRECTED, UNCORRECTED = 0, 1
VOLATILE = 0
ALL_LINKS = 0xFFFFFFFF
ECC_CORRECTED_FIELD, ECC_UNCORRECTED_FIELD = 3, 4
POWER_VIOLATION_FIELD, THERMAL_VIOLATION_FIELD = 74, 75
MEMORY_TEMPERATURE_FIELD, ENERGY_FIELD = 82, 83
NVLINK_SPEED_FIELD = 90
PCIE_REPLAY_FIELD = 94
NVLINK_TX_FIELD, NVLINK_RX_FIELD = 138, 139
PCIE_TX_FIELD, PCIE_RX_FIELD = 197, 198
