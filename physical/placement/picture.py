"""A plan as a picture: stages as bars over the layers that they hold, and the flow between them."""

from __future__ import annotations

from html import escape

from physical.placement.planner import ClusterPlan, ModelPlan, Replica, group_name

_LEFT, _WIDTH, _ROW, _HEAD = 190.0, 760.0, 20.0, 46.0
_COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e")
_MOST_ROWS = 400
"""Stages that are drawn of one model; a picture of more is no picture."""


def svg(plan: ClusterPlan) -> str:
    """An SVG document: one panel a model, one row a stage, flow as lines whose width is the share of the flow."""
    kinds = sorted({s.kind for m in plan.models for r in m.replicas for s in r.stages})
    colours = {kind: _COLOURS[i % len(_COLOURS)] for i, kind in enumerate(kinds)}
    parts: list[str] = []
    top = 34.0
    for model in plan.models:
        top = _panel(parts, model, colours, top)
    legend = "".join(
        f'<rect x="{_LEFT + 130 * i:.0f}" y="8" width="12" height="12" fill="{colours[kind]}"/>'
        f'<text x="{_LEFT + 130 * i + 17:.0f}" y="18">{escape(kind)}</text>'
        for i, kind in enumerate(kinds)
    )
    width = _LEFT + max(_WIDTH + 130, 130.0 * len(kinds))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {top:.0f}" width="{width:.0f}" '
        f'height="{top:.0f}" font-family="sans-serif" font-size="11">\n'
        f"<title>{escape(plan.cluster)}: layers and flow</title>\n"
        f'<rect width="100%" height="100%" fill="white"/>\n{legend}\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _panel(parts: list[str], model: ModelPlan, colours: dict[str, str], top: float) -> float:
    title = (
        f"{model.model}: {model.tokens_per_s:,.0f} tokens/s, {model.requests_per_s:,.2f} requests/s, "
        f"{len(model.replicas)} replicas"
    )
    parts.append(f'<text x="8" y="{top + 16:.0f}" font-size="13" font-weight="bold">{escape(title)}</text>')
    step = next(s for s in (1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 100, 200) if model.layers / s <= 20)
    rows_top = top + _HEAD
    shown = 0
    y = rows_top
    body: list[str] = []
    for number, replica in enumerate(model.replicas):
        if shown + len(replica.stages) > _MOST_ROWS:
            left = len(model.replicas) - number
            body.append(f'<text x="8" y="{y + 14:.0f}">and {left} replicas more</text>')
            y += _ROW
            break
        shown += len(replica.stages)
        y = _replica(body, model, replica, colours, y)
    for layer in range(0, model.layers + 1, step):
        x = _x(model, layer)
        parts.append(f'<line x1="{x:.1f}" y1="{rows_top - 4:.1f}" x2="{x:.1f}" y2="{y:.1f}" stroke="#eee"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{rows_top - 8:.1f}" text-anchor="middle" fill="#777">{layer}</text>'
        )
    parts += body
    return y + 14.0


def _replica(body: list[str], model: ModelPlan, replica: Replica, colours: dict[str, str], y: float) -> float:
    middles = []
    for place, stage in enumerate(replica.stages):
        row = y + place * _ROW
        x, width = _x(model, stage.first_layer), _x(model, stage.first_layer + stage.layers)
        used = stage.tokens_per_s / stage.rate_tokens_per_s if stage.rate_tokens_per_s else 0.0
        name = escape(group_name(stage.devices))
        told = (
            f"{name}, layers {stage.first_layer}-{stage.last_layer}: {stage.tokens_per_s:,.0f} of "
            f"{stage.rate_tokens_per_s:,.0f} tokens/s"
        )
        colour = colours[stage.kind]
        body.append(
            f'<g><title>{told}</title><text x="8" y="{row + 13:.1f}">{name}</text>'
            f'<rect x="{x:.1f}" y="{row + 2:.1f}" width="{width - x:.1f}" height="{_ROW - 5:.1f}" fill="{colour}" '
            f'fill-opacity="0.25"/><rect x="{x:.1f}" y="{row + 2:.1f}" width="{(width - x) * used:.1f}" '
            f'height="{_ROW - 5:.1f}" fill="{colour}"/></g>'
        )
        middles.append(row + 0.5 * _ROW)
    for hop in replica.hops:
        if hop.source is None or hop.target is None:
            continue
        before = replica.stages[hop.source]
        x = _x(model, before.first_layer + before.layers)
        bend = 6.0 + 10.0 * hop.tokens_per_s / replica.tokens_per_s
        one, other = middles[hop.source], middles[hop.target]
        thick = 0.6 + 4.0 * hop.tokens_per_s / replica.tokens_per_s
        body.append(
            f'<path d="M{x:.1f},{one:.1f} C{x + bend:.1f},{one:.1f} {x - bend:.1f},{other:.1f} {x:.1f},{other:.1f}" '
            f'fill="none" stroke="#333" stroke-opacity="0.6" stroke-width="{thick:.2f}"/>'
        )
    end = y + len(replica.stages) * _ROW
    label = f"{replica.weight:.0%}, {1e3 * replica.token_s:.1f} ms"
    body.append(
        f'<text x="{_LEFT + _WIDTH + 8:.0f}" y="{0.5 * (y + end) + 4:.1f}" fill="#555">{label}</text>'
    )
    body.append(
        f'<line x1="8" y1="{end + 2:.1f}" x2="{_LEFT + _WIDTH + 100:.0f}" y2="{end + 2:.1f}" stroke="#ddd"/>'
    )
    return end + 5.0


def _x(model: ModelPlan, layer: int) -> float:
    return _LEFT + _WIDTH * layer / model.layers
