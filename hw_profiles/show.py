"""Profiles on the terminal: tables of figures with their sources, and a cluster as a tree."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pydantic import BaseModel
from rich import box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from hw_profiles.profile import Profile
from hw_profiles.schema import ClusterGroup, DeviceProfile, LinkProfile, ModelSpec, NodeProfile
from hw_profiles.topology import Topology
from hw_profiles.units import count, memory, microseconds, si, three

COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "red", "bright_cyan", "bright_yellow")


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None) -> Table:
    """Columns as wide as their figures; the last one, prose, takes what is left. A heading that begins with
    `>` is right-justified."""
    rows = list(rows)
    widths = [
        max([len(heading.removeprefix(">")), *(len(row[index]) for row in rows)])
        for index, heading in enumerate(headings)
    ]
    left_over = Console().width - sum(widths[:-1]) - 2 * len(headings)
    result = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False
    )
    for index, heading in enumerate(headings):
        prose = index == len(headings) - 1 and not heading.startswith(">")
        result.add_column(
            heading.removeprefix(">"),
            justify="right" if heading.startswith(">") else "left",
            style="bold" if index == 0 else None,
            max_width=max(12, min(widths[-1], left_over)) if prose else None,
            no_wrap=True,
            overflow="ellipsis",
        )
    for row in rows:
        result.add_row(*map(escape, row))
    return result


def devices_table(profiles: Iterable[DeviceProfile]) -> Table:
    """One row a device."""
    rows = []
    for p in profiles:
        peak = si(p.flops_for("bf16"), "FLOP/s") if p.flops else f"{p.fabric.luts:,} LUT" if p.fabric else ""
        bandwidth = si(p.memory_bytes_per_s, "B/s")
        price = f"{p.usd_per_hour:.2f}"
        rows.append((p.name, memory(p.memory_bytes), bandwidth, peak, f"{p.tdp_watts:g}", price, p.title))
    headings = ("device", ">memory", ">bandwidth", ">16-bit", ">W", ">USD/h", "is")
    return table(headings, rows, title="Devices")


def links_table(profiles: Iterable[LinkProfile]) -> Table:
    """One row a link."""
    rows = [(p.name, si(p.bytes_per_s, "B/s"), microseconds(p.latency_s), p.title) for p in profiles]
    return table(("link", ">per direction", ">latency", "is"), rows, title="Links")


def nodes_table(profiles: Iterable[NodeProfile]) -> Table:
    """One row a shape."""
    rows = []
    for p in profiles:
        held = " + ".join(f"{d.count} x {d.device}" if d.count > 1 else d.device for d in p.devices)
        inside = p.fabric.link if p.fabric else p.host.device_link
        rows.append((p.name, held, inside))
    return table(("node", "devices", "inside"), rows, title="Node shapes")


def clusters_table(topologies: Iterable[Topology]) -> Table:
    """One row a cluster."""
    rows = []
    for t in topologies:
        price = sum(device.usd_per_hour for device in t.devices.values())
        rows.append((t.name, str(len(t.devices)), str(len(t.nodes)), f"{price:.2f}", t.profile.title))
    return table(("cluster", ">devices", ">nodes", ">USD/h", "is"), rows, title="Clusters")


def models_table(specs: Iterable[ModelSpec]) -> Table:
    """One row a model."""
    rows = [
        (
            m.name,
            count(m.parameters),
            count(m.active_parameters),
            si(m.weight_bytes, "B"),
            memory(m.kv_bytes_per_token),
            f"{m.max_context_tokens:,}",
            m.title,
        )
        for m in specs
    ]
    headings = ("model", ">size", ">active", ">weights", ">KV/token", ">context", "is")
    return table(headings, rows, title="Models")


def profile_view(profile: Profile) -> RenderableType:
    """Every figure of one profile with its source."""
    headings = ("figure", ">value", "source")
    result = table(headings, _rows(profile), title=f"{profile.name}: {profile.title}")
    result.columns[2].no_wrap = False
    result.columns[2].style = "dim"
    parts: list[RenderableType] = [result]
    if profile.aliases:
        parts.append(Text("also called: " + ", ".join(profile.aliases), style="dim"))
    return Group(*parts)


def _rows(profile: Profile) -> Iterator[tuple[str, str, str]]:
    """(figure, value, source), a source not repeated on the lines that follow with the same one."""
    last = ""
    figures = set(profile.figures())
    for name, field in type(profile).model_fields.items():
        shown_name = field.alias or name
        value = getattr(profile, name)
        if shown_name in {"name", "title", "aliases", "sources", "version"} or value is None:
            continue
        if name not in profile.model_fields_set and shown_name not in figures:
            continue
        source = profile.source_of(shown_name) if shown_name in figures else ""
        for label, text in _flat(shown_name, value):
            yield label, text, "" if source == last else source
            last = source
    if isinstance(profile, ModelSpec):
        yield "parameters", f"{profile.parameters:,}", "derived from the figures above"
        yield "active_parameters", f"{profile.active_parameters:,}", ""
        yield "weight_bytes", si(profile.weight_bytes, "B"), ""
        yield "kv_bytes_per_token", memory(profile.kv_bytes_per_token), ""


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Nested values as dotted names."""
    if isinstance(value, BaseModel):
        for inner in type(value).model_fields:
            if getattr(value, inner) is not None:
                yield from _flat(f"{name}.{inner}", getattr(value, inner))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(f"{name}.{key}", item)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _flat(f"{name}[{index}]", item)
    else:
        yield name, _with_unit(name, value)


def _with_unit(name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value).lower() if isinstance(value, bool) else str(value)
    if name.startswith("flops."):
        return si(value, "FLOP/s")
    if name.endswith("bytes_per_s"):
        return si(value, "B/s")
    if name.endswith("memory_bytes"):
        return memory(value)
    if name.endswith("latency_s"):
        return microseconds(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def cluster_view(topology: Topology) -> RenderableType:
    """A tree of the cluster, its links, and what its figures rest on."""
    kinds = dict.fromkeys(device.kind for device in topology.devices.values())
    colour = {kind: COLOURS[i % len(COLOURS)] for i, kind in enumerate(kinds)}
    root = Tree(Text.assemble((topology.name, "bold"), f"  {topology.profile.title}"))
    networks = topology.profile.networks
    placed: set[str] = set()
    for name, network in networks.items():
        branch = root.add(Text.assemble((name, "bold"), f"  {network.title}", *_uplinks(topology, name)))
        for group in topology.profile.nodes:
            nics = [nic for nic, target in group.attach.items() if target == name]
            if not nics:
                continue
            if group.name in placed:
                branch.add(Text(f"{_range(group)}  {_ports(topology, group, nics, name)}", style="dim"))
                continue
            placed.add(group.name)
            _add_group(branch, topology, group, colour, _ports(topology, group, nics, name))
    for group in topology.profile.nodes:
        if group.name not in placed:
            _add_group(root, topology, group, colour, "no network")
    parts: list[RenderableType] = [root, _between(topology)]
    sources = "\n".join(f"{key}: {text}" for key, text in topology.profile.sources.items())
    parts.append(Text(sources, style="dim"))
    return Group(*parts)


def _range(group: ClusterGroup) -> str:
    return f"{group.name}-0" if group.count == 1 else f"{group.name}-0..{group.count - 1}"


def _ports(topology: Topology, group: ClusterGroup, nics: list[str], network: str) -> str:
    shape = topology.node_shape(f"{group.name}-0")
    parts = []
    for nic in nics:
        edge = topology.graph.edges[f"{group.name}-0/{nic}0", f"net/{network}"]
        ports = f"{shape.nics[nic].count} x " if shape.nics[nic].count > 1 else ""
        parts.append(f"{ports}{edge['link']}")
    return ", ".join(parts)


def _uplinks(topology: Topology, network: str) -> list[tuple[str, str]]:
    result = []
    for uplink in topology.profile.uplinks:
        if network in uplink.between:
            other = next(end for end in uplink.between if end != network)
            result.append((f"  <-> {other}: {uplink.count} x {uplink.link}", "dim"))
    return result


def _add_group(
    branch: Tree, topology: Topology, group: ClusterGroup, colour: dict[str, str], ports: str
) -> None:
    """Every node of a group with a chip for each of its devices."""
    for number in range(group.count):
        node = f"{group.name}-{number}"
        line = Text.assemble((f"{node:<11}", "bold"))
        held: dict[str, int] = {}
        for device_id in topology.nodes[node]:
            kind = topology.devices[device_id].kind
            held[kind] = held.get(kind, 0) + 1
            line.append("■ ", style=colour[kind])
        line.append(" + ".join(f"{n} x {kind}" for kind, n in held.items()))
        shape = topology.node_shape(node)
        inside = shape.fabric.link if shape.fabric else shape.host.device_link
        line.append(f"  {inside}, {ports}", "dim")
        if group.spot:
            line.append(f"  spot at {group.price_factor:g}", style="yellow")
        branch.add(line)


def _between(topology: Topology) -> RenderableType:
    """Bandwidth between node groups: within a node on the diagonal's first figure, to others beside it."""
    groups = topology.profile.nodes
    heads = [topology.nodes[f"{group.name}-0"] for group in groups]
    rows = []
    for group, ids in zip(groups, heads, strict=True):
        cells = []
        for other, others in zip(groups, heads, strict=True):
            if other is not group:
                cells.append(_gb(topology, ids[0], others[0]))
            elif group.count > 1:
                cells.append(_gb(topology, ids[0], topology.nodes[f"{group.name}-1"][-1]))
            else:
                cells.append("-")
        inside = _gb(topology, ids[0], ids[1]) if len(ids) > 1 else "-"
        rows.append((group.name, *cells, inside))
    return table(("GB/s between", *[f">{g.name}" for g in groups], ">in one node"), rows)


def _gb(topology: Topology, a: str, b: str) -> str:
    width = topology.bandwidth_bytes_per_s(a, b)
    return three(width / 1e9) if width else "none"
