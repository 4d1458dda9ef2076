"""What the gate can be asked to change, as values: printable, comparable, and the same after a trip through YAML."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, ClassVar

from loop.contracts import ReplicaSpec
from physical.gate.replicas import DeployReplicas, as_plain, replicas_of

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_LOWEST_NICE, _HIGHEST_NICE = -20, 19


class MutationError(ValueError):
    """A mutation that makes no sense, before any rule is asked; the message names the field and the value."""


class Resource(StrEnum):
    """What a process may use; the soft limit is what the gate moves."""

    MEMORY_BYTES = "memory_bytes"
    OPEN_FILES = "open_files"
    CPU_SECONDS = "cpu_s"


@dataclass(frozen=True)
class StartProcess:
    """Start a process under a name, with its pinning and limits in place before its first instruction."""

    KIND: ClassVar[str] = "start"
    name: str
    command: tuple[str, ...]
    cwd: str | None = None
    env: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Beside the gate's own environment."""
    cpus: tuple[int, ...] = ()
    """Empty: wherever the gate itself may run."""
    nice: int | None = None
    limits: Mapping[Resource, int] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        _name(self.name)
        if not self.command or not all(isinstance(word, str) and "\0" not in word for word in self.command):
            raise MutationError(
                f"start {self.name}: a command is a list of words, not {list(self.command)!r}"
            )
        for key, text in self.env.items():
            if not key or "=" in key or "\0" in key + text:
                raise MutationError(f"start {self.name}: environment variable {key!r} cannot be set")
        _cpus(self.cpus, f"start {self.name}")
        _nice(self.nice, f"start {self.name}")
        for resource, value in self.limits.items():
            _positive(value, f"start {self.name}: limit {resource}")

    @property
    def target(self) -> str:
        """What it acts on."""
        return self.name

    def __str__(self) -> str:
        parts = [f"start {self.name}: {' '.join(self.command)}"]
        if self.cpus:
            parts.append(f"on CPUs {_list(self.cpus)}")
        if self.nice is not None:
            parts.append(f"nice {self.nice}")
        parts += [f"{resource} <= {value:,}" for resource, value in sorted(self.limits.items())]
        return ", ".join(parts)


@dataclass(frozen=True)
class StopProcess:
    """End a process that the gate has started: SIGTERM, and SIGKILL after a grace."""

    KIND: ClassVar[str] = "stop"
    name: str
    grace_s: float = 10.0

    def __post_init__(self) -> None:
        _name(self.name)
        if not (self.grace_s >= 0.0 and math.isfinite(self.grace_s)):
            raise MutationError(f"stop {self.name}: grace_s must be 0 or more, not {self.grace_s}")

    @property
    def target(self) -> str:
        """What it acts on."""
        return self.name

    def __str__(self) -> str:
        return f"stop {self.name}, killed after {self.grace_s:g} s"


@dataclass(frozen=True)
class PinCpus:
    """Let a process and all its threads run on these CPUs only."""

    KIND: ClassVar[str] = "pin"
    target: str
    """A name that the gate has started, or `pid:1234`."""
    cpus: tuple[int, ...]

    def __post_init__(self) -> None:
        _target(self.target)
        if not self.cpus:
            raise MutationError(f"pin {self.target}: at least one CPU is needed")
        _cpus(self.cpus, f"pin {self.target}")

    def __str__(self) -> str:
        return f"pin {self.target} to CPUs {_list(self.cpus)}"


@dataclass(frozen=True)
class SetNice:
    """Priority of a process and all its threads: -20 first, 19 last."""

    KIND: ClassVar[str] = "nice"
    target: str
    nice: int

    def __post_init__(self) -> None:
        _target(self.target)
        _nice(self.nice, f"nice {self.target}")

    def __str__(self) -> str:
        return f"set {self.target} to nice {self.nice}"


@dataclass(frozen=True)
class SetLimit:
    """A process's soft limit of a resource; the hard one stays, so that it can be undone."""

    KIND: ClassVar[str] = "limit"
    target: str
    resource: Resource
    value: int

    def __post_init__(self) -> None:
        _target(self.target)
        _positive(self.value, f"limit {self.target}: {self.resource}")

    def __str__(self) -> str:
        return f"limit {self.target} to {self.resource} <= {self.value:,}"


@dataclass(frozen=True)
class SetPower:
    """Power limit of a GPU, in watts. (Never MIG, never a reset.)"""

    KIND: ClassVar[str] = "power"
    device: str
    """NVML's index or UUID."""
    watts: float

    def __post_init__(self) -> None:
        if not self.device:
            raise MutationError("power: which device?")
        if not (self.watts > 0.0 and math.isfinite(self.watts)):
            raise MutationError(f"power {self.device}: watts must be more than 0, not {self.watts}")

    @property
    def target(self) -> str:
        """What it acts on."""
        return f"gpu:{self.device}"

    def __str__(self) -> str:
        return f"limit GPU {self.device} to {self.watts:g} W"


Mutation = StartProcess | StopProcess | PinCpus | SetNice | SetLimit | SetPower | DeployReplicas
KINDS: dict[str, type[Mutation]] = {
    kind.KIND: kind
    for kind in (StartProcess, StopProcess, PinCpus, SetNice, SetLimit, SetPower, DeployReplicas)
}


def to_dict(mutation: Mutation) -> dict[str, Any]:
    """Plain values; `from_dict` reads them back."""
    values: dict[str, Any] = {"kind": mutation.KIND}
    for item in fields(mutation):
        value = getattr(mutation, item.name)
        if isinstance(value, tuple):
            value = [as_plain(entry) if isinstance(entry, ReplicaSpec) else entry for entry in value]
        elif isinstance(value, Mapping):
            value = {str(key): entry for key, entry in value.items()}
        elif isinstance(value, Resource):
            value = value.value
        values[item.name] = value
    return values


def from_dict(values: Mapping[str, Any]) -> Mutation:
    """A mutation from plain values. Raises MutationError naming what is wrong."""
    kind = values.get("kind")
    if kind not in KINDS:
        raise MutationError(f"no mutation of kind {kind!r}; there are {', '.join(KINDS)}")
    made = KINDS[str(kind)]
    known = {item.name for item in fields(made)}
    given = {key: value for key, value in values.items() if key != "kind"}
    if unknown := sorted(set(given) - known):
        raise MutationError(f"{kind}: no field {unknown[0]!r}; there are {', '.join(sorted(known))}")
    try:
        return made(**{key: _field(str(kind), key, value) for key, value in given.items()})
    except TypeError as error:
        raise MutationError(f"{kind}: {str(error).partition('__init__() ')[2] or error}") from error


def _resource(name: Any) -> Resource:
    try:
        return Resource(name)
    except ValueError:
        raise MutationError(f"no resource {name!r}; there are {', '.join(Resource)}") from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _device(value: Any) -> str:
    return str(value) if type(value) is int else _text(value)


def _words(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(word, str | int | float) for word in value):
        raise TypeError
    return tuple(str(word) for word in value)


def _numbers(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(entry) is int for entry in value):
        raise TypeError
    return tuple(value)


def _variables(value: Any) -> dict[str, str]:
    return {str(name): str(entry) for name, entry in dict(value).items()}


def _limits(value: Any) -> dict[Resource, int]:
    return {_resource(name): entry for name, entry in dict(value).items()}


def _number(value: Any) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise TypeError
    return value


_READERS: dict[str, Callable[[Any], Any]] = {
    "name": _text,
    "target": _text,
    "device": _device,
    "cwd": lambda value: None if value is None else _text(value),
    "command": _words,
    "cpus": _numbers,
    "env": _variables,
    "limits": _limits,
    "resource": _resource,
    "replicas": replicas_of,
    "reason": _text,
}


def _field(kind: str, key: str, value: Any) -> Any:
    """The value as its field holds it."""
    try:
        reader: Callable[[Any], Any] = _READERS.get(key, _number)
        return reader(value)
    except MutationError:
        raise
    except (TypeError, ValueError, KeyError):
        raise MutationError(f"{kind}: {key} cannot be {value!r}") from None


def _name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise MutationError(f"a name is letters, digits, '.', '_' and '-', not {name!r}")


def _target(target: str) -> None:
    if target.startswith("pid:"):
        if not target[4:].isascii() or not target[4:].isdigit() or int(target[4:]) < 1:
            raise MutationError(f"target {target!r}: pid:NUMBER is wanted")
        return
    _name(target)


def _cpus(cpus: tuple[int, ...], where: str) -> None:
    if any(cpu < 0 for cpu in cpus) or len(set(cpus)) != len(cpus):
        raise MutationError(f"{where}: CPUs {list(cpus)} must be different numbers from 0")


def _nice(nice: int | None, where: str) -> None:
    if nice is not None and (type(nice) is not int or not _LOWEST_NICE <= nice <= _HIGHEST_NICE):
        raise MutationError(f"{where}: nice must be a whole number from -20 to 19, not {nice!r}")


def _positive(value: int, where: str) -> None:
    if type(value) is not int or value < 1:
        raise MutationError(f"{where} must be a whole number above 0, not {value!r}")


def _list(cpus: tuple[int, ...]) -> str:
    return ",".join(map(str, sorted(cpus)))
