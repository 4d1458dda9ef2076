"""Task graphs, durations and machines as JSON files; WfCommons instances are read too (docs/scheduling.md)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from physical.scheduling.graph import Access, Data, GraphError, Task, TaskGraph
from physical.scheduling.machine import Hop, Link, Machine, MachineError, Unit
from physical.scheduling.problem import Durations

ACCESSES = {"reads": Access.READ, "writes": Access.WRITE, "updates": Access.READ_WRITE}


class FormatError(ValueError):
    """A file that cannot be read as what it should be; the message names file and place."""


@dataclass(frozen=True, slots=True)
class Workload:
    """A graph with the durations that its file gives."""

    graph: TaskGraph
    seconds: Mapping[str, Mapping[str, float]]
    """Kernel -> kind of unit -> seconds; kind `*` stands for every kind that is not named."""

    def durations(self, speed: Mapping[str, float] | None = None) -> Durations:
        """For a problem. `speed`: kind -> how many times as fast as the file says it is for `*`."""
        factor = dict(speed or {})

        def duration(task: Task, kind: str) -> float | None:
            of_kernel = self.seconds.get(task.kernel, {})
            if kind in of_kernel:
                return of_kernel[kind]
            if "*" in of_kernel:
                return of_kernel["*"] / factor.get(kind, 1.0)
            return None

        return duration


def read_graph(path: Path) -> Workload:
    """A graph from a file in our own format or a WfCommons instance.

    Raises:
        FormatError: no readable JSON, or a field is missing or of the wrong kind.
        GraphError: the graph itself does not hold together.
    """
    raw = _load(path)
    return _wfcommons(raw, path) if "workflow" in raw else _own(raw, path)


def read_machine(path: Path) -> Machine:
    """A machine from a file.

    Raises:
        FormatError: no readable JSON, or a field is missing or of the wrong kind.
        MachineError: the machine itself does not hold together.
    """
    raw = _load(path)
    units: list[Unit] = []
    for i, entry in enumerate(_list(raw, "units", path)):
        where = f"units[{i}]"
        kind = _text(entry, "kind", path, where)
        count = int(_number(entry, "count", path, where, default=1.0))
        if not 1 <= count <= 10_000:
            raise FormatError(f"{path}: {where}: count is {count}, and must be from 1 to 10000")
        name = _text(entry, "name", path, where, default=kind)
        for number in range(count):
            own = name if count == 1 and "name" in entry else f"{name}{number}"
            units.append(Unit(own, kind, _text(entry, "memory", path, where, default=own).format(i=number)))
    links = []
    hops = []
    for i, entry in enumerate(_list(raw, "links", path, default=[])):
        where = f"links[{i}]"
        streams = entry.get("streams", 1)
        if streams is not None and (not isinstance(streams, int) or isinstance(streams, bool)):
            raise FormatError(f"{path}: {where}: streams is {streams!r}, and must be a whole number or null")
        name = _text(entry, "name", path, where)
        links.append(
            Link(
                name,
                _number(entry, "bytes_per_s", path, where),
                _number(entry, "latency_s", path, where, default=0.0),
                streams,
            )
        )
    for i, entry in enumerate(_list(raw, "hops", path, default=[])):
        where = f"hops[{i}]"
        names = _list(entry, "links", path, where)
        hops.append(
            Hop(_text(entry, "from", path, where), _text(entry, "to", path, where), tuple(map(str, names)))
        )
    memories = raw.get("memories", {})
    if not isinstance(memories, dict):
        raise FormatError(f"{path}: memories must be an object: how many bytes each holds")
    bounds = {str(node): _number(memories, node, path, "memories") for node in memories}
    name = _text(raw, "name", path, "top", default=path.stem)
    return Machine(name, units, links, hops, memory_bytes=bounds)


def graph_as_json(workload: Workload) -> dict[str, Any]:
    """The object that `read_graph` reads."""
    tasks = []
    for task in workload.graph.tasks:
        entry: dict[str, Any] = {"name": task.name, "kernel": task.kernel, "size": task.size}
        for key, access in ACCESSES.items():
            names = [name for name, how in task.accesses if how is access]
            if names:
                entry[key] = names
        if task.after:
            entry["after"] = list(task.after)
        tasks.append(entry)
    data = [
        {"name": d.name, "bytes": d.nbytes} | ({"home": d.home} if d.home is not None else {})
        for d in workload.graph.data
    ]
    return {
        "name": workload.graph.name,
        "tasks": tasks,
        "data": data,
        "durations": {kernel: dict(kinds) for kernel, kinds in workload.seconds.items()},
    }


def _own(raw: Mapping[str, Any], path: Path) -> Workload:
    tasks = []
    for i, entry in enumerate(_list(raw, "tasks", path)):
        where = f"tasks[{i}]"
        name = _text(entry, "name", path, where)
        accesses = []
        for key, access in ACCESSES.items():
            accesses += [(str(datum), access) for datum in _list(entry, key, path, where, default=[])]
        tasks.append(
            Task(
                name,
                _text(entry, "kernel", path, where, default=name),
                _number(entry, "size", path, where, default=1.0),
                tuple(accesses),
                tuple(map(str, _list(entry, "after", path, where, default=[]))),
            )
        )
    data = []
    for i, entry in enumerate(_list(raw, "data", path, default=[])):
        where = f"data[{i}]"
        home = entry.get("home")
        data.append(
            Data(
                _text(entry, "name", path, where),
                _number(entry, "bytes", path, where),
                None if home is None else str(home),
            )
        )
    seconds: dict[str, dict[str, float]] = {}
    given = raw.get("durations", {})
    if not isinstance(given, dict):
        raise FormatError(f"{path}: durations must be an object of kernels")
    for kernel, kinds in given.items():
        where = f"durations.{kernel}"
        if isinstance(kinds, dict):
            seconds[kernel] = {str(kind): _number(kinds, kind, path, where) for kind in kinds}
        else:
            seconds[kernel] = {"*": _number(given, kernel, path, "durations")}
    return Workload(TaskGraph(_text(raw, "name", path, "top", default=path.stem), tasks, data), seconds)


def _wfcommons(raw: Mapping[str, Any], path: Path) -> Workload:
    """A WfCommons instance, schema 1.3 to 1.5: tasks with runtimes on one kind of machine, and files."""
    workflow = raw["workflow"]
    if not isinstance(workflow, dict):
        raise FormatError(f"{path}: workflow must be an object")
    specification = workflow.get("specification", workflow)
    entries = _list(specification, "tasks", path, "workflow")
    size = {
        str(f.get("id", f.get("name"))): float(f.get("sizeInBytes", f.get("size", 0)) or 0)
        for f in _list(specification, "files", path, "workflow", default=[])
    }
    runtime: dict[str, float] = {}
    for i, entry in enumerate(
        _list(workflow.get("execution", {}), "tasks", path, "workflow.execution", default=[])
    ):
        where = f"execution.tasks[{i}]"
        runtime[_text(entry, "id", path, where)] = _number(entry, "runtimeInSeconds", path, where)
    names: dict[str, str] = {}
    found: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {}
    for i, entry in enumerate(entries):
        where = f"workflow.tasks[{i}]"
        key = _text(entry, "id", path, where, default=_text(entry, "name", path, where))
        if key in found:
            raise GraphError(f"graph '{path.stem}': two tasks are named '{key}'")
        names[_text(entry, "name", path, where)] = key
        reads = [str(name) for name in _list(entry, "inputFiles", path, where, default=[])]
        writes = [str(name) for name in _list(entry, "outputFiles", path, where, default=[])]
        for file in _list(entry, "files", path, where, default=[]):
            name = str(file.get("id", file.get("name")))
            size[name] = float(file.get("sizeInBytes", file.get("size", 0)) or 0)
            (writes if file.get("link") == "output" else reads).append(name)
        if key not in runtime:
            short = "runtimeInSeconds" if "runtimeInSeconds" in entry else "runtime"
            runtime[key] = _number(entry, short, path, where)
        found[key] = (entry, reads, writes)
    parents = {
        key: [names.get(str(p), str(p)) for p in _list(entry, "parents", path, key, default=[])]
        for key, (entry, _, _) in found.items()
    }
    return _submitted(path, raw, found=found, parents=parents, size=size, runtime=runtime)


def _submitted(
    path: Path,
    raw: Mapping[str, Any],
    *,
    found: Mapping[str, tuple[dict[str, Any], list[str], list[str]]],
    parents: Mapping[str, Sequence[str]],
    size: Mapping[str, float],
    runtime: Mapping[str, float],
) -> Workload:
    """Tasks in an order in which each file is written before it is read: parents first."""
    bare = TaskGraph(path.stem, [Task(key, key, after=tuple(parents[key])) for key in found])
    tasks = []
    used: dict[str, None] = {}
    for index in bare.order:
        key = bare.tasks[index].name
        _, reads, writes = found[key]
        accesses: dict[str, Access] = {}
        for name in reads:
            accesses[name] = Access.READ
        for name in writes:
            accesses[name] = Access.READ_WRITE if name in accesses else Access.WRITE
        used.update(dict.fromkeys(accesses))
        tasks.append(Task(key, key, 1.0, tuple(accesses.items()), tuple(dict.fromkeys(parents[key]))))
    data = [Data(name, size.get(name, 0.0)) for name in used]
    graph = TaskGraph(str(raw.get("name", path.stem)), tasks, data)
    return Workload(graph, {key: {"*": runtime[key]} for key in found})


def _load(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FormatError(f"{path}: {error.strerror or error}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"{path}: no JSON: {error}") from error
    if not isinstance(raw, dict):
        raise FormatError(f"{path}: the file must hold an object")
    return raw


_REQUIRED: Any = object()


def _list(raw: Any, key: str, path: Path, where: str = "top", *, default: Any = _REQUIRED) -> list[Any]:
    value = raw.get(key, default) if isinstance(raw, dict) else _REQUIRED
    if not isinstance(value, list):
        raise FormatError(f"{path}: {where}: '{key}' must be a list")
    if key in {"tasks", "data", "units", "hops", "files"} and not all(
        isinstance(entry, dict) for entry in value
    ):
        raise FormatError(f"{path}: {where}: '{key}' must be a list of objects")
    return value


def _text(raw: Any, key: str, path: Path, where: str, *, default: Any = _REQUIRED) -> str:
    value = raw.get(key, default) if isinstance(raw, dict) else _REQUIRED
    if not isinstance(value, str):
        raise FormatError(f"{path}: {where}: '{key}' must be text")
    return value


def _number(raw: Any, key: str, path: Path, where: str, *, default: Any = _REQUIRED) -> float:
    value = raw.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise FormatError(f"{path}: {where}: '{key}' must be a number, at least 0")
    return float(value)


__all__ = ["FormatError", "MachineError", "Workload", "graph_as_json", "read_graph", "read_machine"]
