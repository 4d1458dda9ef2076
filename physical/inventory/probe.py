"""Looks at this machine: processors and memory by hwloc or /sys, GPUs by NVML, ports by /sys."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from physical.inventory.facts import MachineFacts
from physical.inventory.gpus import find_gpus
from physical.inventory.hwloc import HwlocError, lstopo_xml, read_hwloc
from physical.inventory.sysfs import find_cpu, find_nics


def probe(*, timed: bool = False, root: Path = Path("/")) -> MachineFacts:
    """Everything that can be found out without changing anything; `timed` adds two seconds of measurements."""
    cpu = find_cpu(root)
    notes: list[str] = []
    xml = lstopo_xml() if root == Path("/") else None
    if xml is not None:
        try:
            cpu = read_hwloc(xml, cpu)
        except HwlocError as error:
            notes.append(f"lstopo's XML {error}: /sys is used instead")
    gpus, pairs, links, driver, gpu_notes = find_gpus(root=root)
    nics, nic_notes = find_nics(root)
    facts = MachineFacts(
        cpu=cpu,
        gpus=gpus,
        pairs=pairs,
        nvlinks=links,
        nics=nics,
        driver=driver,
        notes=(*notes, *gpu_notes, *nic_notes),
    )
    if timed:
        from physical.inventory.measure import measure  # noqa: PLC0415 - numpy

        facts = replace(facts, measured=measure(cpu.numa))
    return facts
