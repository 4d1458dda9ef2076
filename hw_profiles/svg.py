"""A cluster as a picture: networks as vertical lines, nodes as boxes of device chips, links with their speed.

Self-contained SVG; follows the reader's light or dark theme.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from hw_profiles.schema import ClusterGroup
from hw_profiles.topology import Topology
from hw_profiles.units import memory, si

CHIP, GAP, PAD = 46, 6, 12
PER_ROW = 4
NODE_WIDTH = PER_ROW * CHIP + (PER_ROW - 1) * GAP + 2 * PAD
NODES_PER_ROW = 4
BUS_STEP = 92
LEFT = 28
TOP = 92
HUES = ("#4c78a8", "#e4812f", "#3a9d78", "#b65fa5", "#c9a227", "#7a6fd0", "#d1495b", "#5b8e9c")
BUS_COLOURS = ("#2f6fdf", "#c2410c", "#0f8a5f", "#9333ea", "#a16207", "#be185d")
STYLE = """
  :root { color-scheme: light dark }
  .page { fill: #fbfbfa } .node { fill: #fff; stroke: #c9c9c4 } .ink { fill: #24241f } .dim { fill: #75756c }
  .fabric { fill: #ecece6 } .chip { fill: #fff; font-weight: 600 } .spot { stroke-dasharray: 5 4 }
  text { font-family: ui-sans-serif, system-ui, 'Segoe UI', Helvetica, Arial, sans-serif }
  @media (prefers-color-scheme: dark) {
    .page { fill: #191a1c } .node { fill: #232528; stroke: #4a4d52 } .ink { fill: #ececea }
    .dim { fill: #a0a29e } .fabric { fill: #33363a }
  }
"""


def draw(topology: Topology) -> str:
    """The whole picture as SVG text."""
    return _Picture(topology).render()


class _Picture:
    """Lays the groups out as rows beside the network lines, top to bottom."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        kinds = dict.fromkeys(device.kind for device in topology.devices.values())
        self.hue = {kind: HUES[i % len(HUES)] for i, kind in enumerate(kinds)}
        networks = topology.profile.networks
        self.bus_x = {name: LEFT + 34 + i * BUS_STEP for i, name in enumerate(networks)}
        self.colour = {name: BUS_COLOURS[i % len(BUS_COLOURS)] for i, name in enumerate(networks)}
        self.nodes_x = LEFT + (len(networks) * BUS_STEP + 52 if networks else 0)
        self.parts: list[str] = []
        self.over: list[str] = []
        self.stubs: list[tuple[str, float]] = []
        self.text_right = 0.0

    def render(self) -> str:
        uplinks = self.topology.profile.uplinks
        y = TOP + 30.0 * len(uplinks) + (34 if self.bus_x else 0)
        first_y = y
        widest = 0
        for group in self.topology.profile.nodes:
            y = self._group(group, y)
            widest = max(widest, min(group.count, NODES_PER_ROW))
        self._buses(first_y)
        y = self._legend(y + 6)
        title = self.topology.profile.title
        boxes_right = self.nodes_x + widest * (NODE_WIDTH + 16) - 16
        width = max(boxes_right, self.text_right, LEFT + 8.0 * (len(title) + 24)) + LEFT
        devices, nodes = len(self.topology.devices), len(self.topology.nodes)
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {y:.0f}" width="{width:.0f}" '
            f'height="{y:.0f}" role="img" aria-label="{escape(title)}">\n<style>{STYLE}</style>\n'
            f'<rect class="page" width="100%" height="100%"/>\n'
        )
        self.parts.append(_text(LEFT, 40, self.topology.name, 22, weight=700))
        subtitle = f"{title} ({devices} devices, {nodes} node{'s' if nodes != 1 else ''})"
        self.parts.append(_text(LEFT, 62, subtitle, 13, css="dim"))
        return head + "\n".join([*self.parts, *self.over]) + "\n</svg>\n"

    def _group(self, group: ClusterGroup, y: float) -> float:
        """One group of nodes from y on; where the next may begin."""
        ids = [node for node in self.topology.nodes if node.rpartition("-")[0] == group.name]
        shape = self.topology.node_shape(ids[0])
        tags = "" if not group.spot else f", spot at {group.price_factor:g} of the price"
        self.parts.append(_text(self.nodes_x, y + 12, f"{group.count} x {shape.name}", 14, weight=700))
        heading = f"{shape.title}{tags}"
        self.parts.append(_text(self.nodes_x, y + 29, heading, 12, css="dim"))
        y += 40
        stub_y = y + 16.0
        for nic, network in group.attach.items():
            self._stub(network, stub_y, self._nic_label(ids[0], nic, network))
            stub_y += 30
        height = self._node_height(ids[0])
        for index, node in enumerate(ids):
            column, row = index % NODES_PER_ROW, index // NODES_PER_ROW
            x = self.nodes_x + column * (NODE_WIDTH + 16)
            self._node(node, x, y + row * (height + 14), spot=group.spot)
        rows = -(-len(ids) // NODES_PER_ROW)
        return max(y + rows * (height + 14), stub_y) + 22

    def _nic_label(self, node: str, nic: str, network: str) -> str:
        edge = self.topology.graph.edges[f"{node}/{nic}0", f"net/{network}"]
        count = self.topology.node_shape(node).nics[nic].count
        speed = si(edge["bytes_per_s"], "B/s")
        return f"{count} x {speed}" if count > 1 else speed

    def _stub(self, network: str, y: float, label: str) -> None:
        """From a network's line to the boxes of a group."""
        x, colour = self.bus_x[network], self.colour[network]
        self.stubs.append((network, y))
        self.parts.append(
            f'<line x1="{x}" y1="{y}" x2="{self.nodes_x}" y2="{y}" stroke="{colour}" stroke-width="2"/>'
        )
        self.over.append(f'<circle cx="{x}" cy="{y}" r="5" fill="{colour}"/>')
        self.over.append(_text(self.nodes_x - 6, y - 5, label, 11, css="ink", anchor="end"))

    def _node_height(self, node: str) -> float:
        rows = -(-len(self.topology.nodes[node]) // PER_ROW)
        return 26 + rows * (CHIP + GAP) + 24 + PAD

    def _node(self, node: str, x: float, y: float, *, spot: bool) -> None:
        height = self._node_height(node)
        css = "node spot" if spot else "node"
        self.parts.append(
            f'<rect class="{css}" x="{x}" y="{y}" width="{NODE_WIDTH}" height="{height}" rx="9" '
            f'stroke-width="1.4"/>'
        )
        self.parts.append(_text(x + PAD, y + 18, node, 12, weight=600))
        ids = self.topology.nodes[node]
        for index, device_id in enumerate(ids):
            device = self.topology.devices[device_id]
            cx = x + PAD + (index % PER_ROW) * (CHIP + GAP)
            cy = y + 26 + (index // PER_ROW) * (CHIP + GAP)
            tip = (
                f"{device.id}: {device.profile.title}, {memory(device.profile.memory_bytes)}, "
                f"{si(device.profile.memory_bytes_per_s, 'B/s')}, {device.usd_per_hour:.2f} USD/h"
            )
            self.parts.append(
                f'<g><title>{escape(tip)}</title><rect x="{cx}" y="{cy}" width="{CHIP}" height="{CHIP}" '
                f'rx="6" fill="{self.hue[device.kind]}"/>'
                + _text(
                    cx + CHIP / 2,
                    cy + CHIP / 2 + 4,
                    device_id.rpartition("/")[2],
                    11,
                    css="chip",
                    anchor="middle",
                )
                + "</g>"
            )
        bar_y = y + height - PAD - 20
        self.parts.append(
            f'<rect class="fabric" x="{x + PAD}" y="{bar_y}" width="{NODE_WIDTH - 2 * PAD}" height="18" rx="5"/>'
        )
        self.parts.append(_text(x + NODE_WIDTH / 2, bar_y + 13, self._inside(node, ids), 11, anchor="middle"))

    def _inside(self, node: str, ids: Sequence[str]) -> str:
        """The fastest link between devices of the node, in words."""
        shape = self.topology.node_shape(node)
        if len(ids) < 2:
            return f"{shape.host.device_link} to the host"
        name = shape.fabric.link if shape.fabric else shape.host.device_link
        return f"{name}, {si(self.topology.bandwidth_bytes_per_s(ids[0], ids[1]), 'B/s')}"

    def _buses(self, first_y: float) -> None:
        """The network lines, drawn as far down as something hangs on them, and the uplinks above."""
        uplinks = self.topology.profile.uplinks
        lines: list[str] = []
        for name, x in self.bus_x.items():
            top = first_y - 14
            bottom = max([y for network, y in self.stubs if network == name], default=top + 20)
            colour = self.colour[name]
            lines.append(
                f'<line x1="{x}" y1="{top}" x2="{x}" y2="{bottom}" stroke="{colour}" stroke-width="5" '
                f'stroke-linecap="round"/>'
            )
            title = self.topology.profile.networks[name].title
            label = _text(x, top - 10, name, 13, anchor="middle", weight=700)
            lines.append(f"<g><title>{escape(title)}</title>{label}</g>")
        for index, uplink in enumerate(uplinks):
            a, b = sorted(self.bus_x[end] for end in uplink.between)
            y = TOP + 4 + 30.0 * index
            edge = self.topology.graph.edges[f"net/{uplink.between[0]}", f"net/{uplink.between[1]}"]
            low = first_y - 42
            lines.append(
                f'<path d="M{a} {low} V{y + 8} Q{a} {y} {a + 8} {y} H{b - 8} Q{b} {y} {b} {y + 8} V{low}" '
                f'fill="none" stroke="#8b8b84" stroke-width="2.5"/>'
            )
            label = f"{uplink.count} x {uplink.link}, {si(edge['bytes_per_s'], 'B/s')}"
            lines.append(_text(b + 10, y + 4, label, 11, css="dim"))
        self.parts = lines + self.parts

    def _legend(self, y: float) -> float:
        """One line a kind of device; where the picture ends."""
        for kind, colour in self.hue.items():
            members = [d for d in self.topology.devices.values() if d.kind == kind]
            profile = members[0].profile
            self.parts.append(
                f'<rect x="{self.nodes_x}" y="{y}" width="14" height="14" rx="3" fill="{colour}"/>'
            )
            figures = f"{memory(profile.memory_bytes)} at {si(profile.memory_bytes_per_s, 'B/s')}"
            if profile.flops:
                figures += f", {si(profile.flops_for('bf16'), 'FLOP/s')} in 16 bit"
            label = f"{len(members)} x {profile.title}: {figures}, {profile.tdp_watts:g} W"
            self.parts.append(_text(self.nodes_x + 22, y + 12, label, 12))
            self.text_right = max(self.text_right, self.nodes_x + 22 + 7.0 * len(label))
            y += 22
        return y + 16


def _text(
    x: float, y: float, text: str, size: int, *, css: str = "ink", anchor: str = "start", weight: int = 400
) -> str:
    return (
        f'<text class="{css}" x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" '
        f'font-weight="{weight}">{escape(text)}</text>'
    )
