"""The machine at hand as a scheduler sees it, with links as fast as they were measured."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import replace

import numpy as np

from physical.runtime.units import CUDA, HOST, PROCESS, THREAD, Units
from physical.scheduling.machine import Hop, Link, Machine, Unit

SMALL_BYTES, LARGE_BYTES = 1 << 10, 1 << 23
ROUNDS = 5
GUESS_BYTES_PER_S, GUESS_LATENCY_S = 1e9, 1e-4


def local_machine(threads: int = 1, processes: int = 1, gpus: int = 0, name: str = "local") -> Machine:
    """Threads that share this process's memory, processes and GPUs with memories of their own.

    A process has one wire for both directions, a GPU one for each. Speeds are guesses until `measured`.
    """
    units = [Unit(f"cpu{i}", THREAD, HOST) for i in range(threads)]
    links: list[Link] = []
    hops: list[Hop] = []
    for i in range(processes):
        node, wire = f"process{i}", f"pipe{i}"
        units.append(Unit(node, PROCESS, node))
        links.append(Link(wire, GUESS_BYTES_PER_S, GUESS_LATENCY_S))
        hops += [Hop(HOST, node, (wire,)), Hop(node, HOST, (wire,))]
    for i in range(gpus):
        node = f"cuda:{i}"
        units.append(Unit(f"gpu{i}", CUDA, node))
        for way, source, target in (("down", HOST, node), ("up", node, HOST)):
            links.append(Link(f"pcie{i}-{way}", GUESS_BYTES_PER_S, GUESS_LATENCY_S))
            hops.append(Hop(source, target, (f"pcie{i}-{way}",)))
    hops.sort(key=lambda hop: (hop.source != HOST, hop.source, hop.target))
    return Machine(name, units, links, hops)


def spread_over_cores(machine: Machine) -> dict[str, int]:
    """A core for each CPU unit, in turn: processes from the last one down, threads from the first one up."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    found = {}
    for kind, order in ((THREAD, cores), (PROCESS, cores[::-1])):
        for number, unit in enumerate(u for u in machine.units if u.kind == kind):
            found[unit.name] = order[number % len(order)]
    return found


def measured(units: Units) -> Machine:
    """The units' machine with links as fast as copying is now: latency and bandwidth of each from two sizes, medians.

    Raises MemoryLostError.
    """
    machine = units.machine
    found = {link.name: link for link in machine.links}
    for hop in machine.hops:
        source, target = machine.nodes.index(hop.source), machine.nodes.index(hop.target)
        small_s, large_s = (_copy_s(units, source, target, size) for size in (SMALL_BYTES, LARGE_BYTES))
        bytes_per_s = (LARGE_BYTES - SMALL_BYTES) / max(large_s - small_s, 1e-9)
        wire = hop.links[0]
        slower = min(bytes_per_s, found[wire].bytes_per_s) if wire in _seen(machine, hop) else bytes_per_s
        found[wire] = replace(found[wire], bytes_per_s=slower, latency_s=small_s)
    return Machine(
        machine.name, machine.units, found.values(), machine.hops, memory_bytes=machine.memory_bytes
    )


def _seen(machine: Machine, hop: Hop) -> set[str]:
    """Links that a hop before this one was measured over."""
    before = machine.hops[: machine.hops.index(hop)]
    return {link for other in before for link in other.links}


def _copy_s(units: Units, source: int, target: int, nbytes: int) -> float:
    version = -1  # no graph has it
    value = np.zeros(nbytes, dtype=np.uint8)
    units.memory(source).put(version, value)
    times = []
    for _ in range(ROUNDS):
        began_s = time.perf_counter()
        units.carry(version, source, target)
        times.append(time.perf_counter() - began_s)
    for node in (source, target):
        units.memory(node).drop(version)
    return statistics.median(times)
